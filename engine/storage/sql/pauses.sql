-- name: pauses
-- What was last said of each workflow that was ever paused as a whole.
select p.workflow, p.paused, p.reason, p.author, p.at from engine.pauses p order by p.workflow;
