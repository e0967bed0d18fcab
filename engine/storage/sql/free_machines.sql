-- name: free_machines
-- How many machine ids nobody holds.
select $1::int - count(*) as free from engine.machine_ids where expires_at >= clock_timestamp();
