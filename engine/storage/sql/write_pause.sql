-- name: write_pause
-- Pause a workflow as a whole, or end that; what is so already stays as it was said first.
insert into engine.pauses as p (workflow, paused, reason, author)
select $1::text, $2::boolean, $3::text, $4::text
where $2::boolean or exists (select from engine.pauses o where o.workflow = $1::text)
on conflict (workflow) do update
set
    paused = excluded.paused,
    reason = excluded.reason,
    author = excluded.author,
    at = excluded.at
where p.paused <> excluded.paused
returning p.workflow;
