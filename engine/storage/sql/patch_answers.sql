-- name: patch_answers
-- What patched() has answered in the present runs of executions that have not ended.
select x.workflow, j.name as change, j.payload = 'true'::bytea as answer, count(*) as executions
from engine.journal j
join engine.executions x on x.request_id = j.execution and x.run = j.run
where j.kind = 18 and x.status < 5
group by x.workflow, j.name, j.payload
order by x.workflow, j.name, answer;
