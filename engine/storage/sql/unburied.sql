-- name: unburied
-- Runners declared dead whose sessions have not been seen to end.
select r.id from engine.runners r where r.died_at is not null and r.buried_at is null
order by r.died_at;
