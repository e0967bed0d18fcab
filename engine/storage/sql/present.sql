-- name: present
-- Which of these processes have a session now.
select distinct split_part(a.application_name, ':', 2) as id
from pg_stat_activity a
where a.application_name like 'outlast:%'
    and split_part(a.application_name, ':', 2) = any ($1::text[]);
