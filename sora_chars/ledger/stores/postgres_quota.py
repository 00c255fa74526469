"""The tables and the function by which processes on one PostgreSQL database share a limit.

`sora_chars.ratelimit.distributed` calls them. Each process has a row with its slots and
the time at which they expire. The sum of all slots never exceeds the limit: a process is
granted only free slots, and its own are reduced only by its own reports. A lost response
therefore does no harm.

All times are the database's:

- If its clock is set back, the stored times are set back with it.
- If its clock is set forward, all leases expire at once. No lease grows until every
  living process has had time to renew its own.

So the living processes never hold more than the limit together. Only requests of a
process that has just ended can exceed it, for one window.
"""

from __future__ import annotations

from typing import LiteralString

TABLES: LiteralString = """
CREATE TABLE sora_chars_limits (
    name text PRIMARY KEY,
    paused_until timestamptz NOT NULL DEFAULT '-infinity',
    calm_until timestamptz NOT NULL DEFAULT '-infinity',
    heard_at timestamptz NOT NULL DEFAULT '-infinity'
);
CREATE TABLE sora_chars_parts (
    name text NOT NULL REFERENCES sora_chars_limits,
    holder text NOT NULL,
    places integer NOT NULL,
    wanted integer NOT NULL,
    until timestamptz NOT NULL,
    has_left boolean NOT NULL DEFAULT false,
    PRIMARY KEY (name, holder)
);
"""

RENAMES: LiteralString = """
DROP FUNCTION IF EXISTS sora_chars_divide;
ALTER TABLE sora_chars_limits RENAME COLUMN paused_until TO cooldown_until;
ALTER TABLE sora_chars_limits RENAME COLUMN heard_at TO last_seen_at;
ALTER TABLE sora_chars_parts RENAME TO sora_chars_leases;
ALTER TABLE sora_chars_leases RENAME COLUMN holder TO owner;
ALTER TABLE sora_chars_leases RENAME COLUMN places TO slots;
ALTER TABLE sora_chars_leases RENAME COLUMN wanted TO wants;
ALTER TABLE sora_chars_leases RENAME COLUMN until TO expires_at;
CREATE FUNCTION sora_chars_acquire_lease(
    my_owner text, my_name text, capacity integer, my_wants integer, my_slots integer,
    lease double precision, grace double precision, rotation double precision, my_cooldown double precision,
    OUT granted integer, OUT rank integer, OUT processes integer, OUT cooldown double precision
) LANGUAGE plpgsql AS $$
DECLARE
    now_at timestamptz;  -- now() would be the time at which the wait for the row lock began
    shared sora_chars_limits;
    set_back interval;
    others integer;
    level integer;  -- what every process can have that wants as much
    spare integer;  -- what remains, in rotation for the rivals that want more
    rivals integer;
    my_position bigint;
BEGIN
    INSERT INTO sora_chars_limits (name) VALUES (my_name) ON CONFLICT DO NOTHING;
    SELECT * INTO shared FROM sora_chars_limits WHERE name = my_name FOR UPDATE;
    now_at := clock_timestamp();
    IF now_at < shared.last_seen_at THEN
        set_back := shared.last_seen_at - now_at;
        shared.cooldown_until := shared.cooldown_until - set_back;
        shared.calm_until := shared.calm_until - set_back;
        UPDATE sora_chars_leases SET expires_at = expires_at - set_back WHERE name = my_name;
    END IF;
    IF shared.calm_until < now_at THEN
        -- An expired lease means a dead process, unless every lease expired: then the database was unavailable, and
        -- the processes continue alone, or its clock was set forward. Until they return no lease grows.
        IF shared.last_seen_at < now_at - make_interval(secs => lease)
            AND EXISTS (SELECT FROM sora_chars_leases
                WHERE name = my_name AND owner <> my_owner AND NOT has_left AND expires_at < now_at) THEN
            shared.calm_until := now_at + make_interval(secs => lease);
        ELSE
            DELETE FROM sora_chars_leases WHERE name = my_name AND expires_at < now_at AND owner <> my_owner;
        END IF;
    END IF;
    shared.cooldown_until := greatest(shared.cooldown_until, now_at + make_interval(secs => my_cooldown));
    UPDATE sora_chars_limits
        SET cooldown_until = shared.cooldown_until, calm_until = shared.calm_until, last_seen_at = now_at
        WHERE name = my_name;
    cooldown := greatest(0, extract(epoch FROM shared.cooldown_until - now_at));

    INSERT INTO sora_chars_leases AS mine
        VALUES (my_name, my_owner, my_slots, my_wants, now_at + make_interval(secs => grace))
        ON CONFLICT (name, owner) DO UPDATE
        SET slots = EXCLUDED.slots, wants = EXCLUDED.wants, expires_at = EXCLUDED.expires_at, has_left = false;
    SELECT coalesce(sum(slots) FILTER (WHERE owner <> my_owner), 0),
            count(*) FILTER (WHERE NOT has_left), count(*) FILTER (WHERE NOT has_left AND owner < my_owner)
        INTO others, processes, rank FROM sora_chars_leases WHERE name = my_name;
    IF shared.calm_until >= now_at THEN
        granted := my_slots;
        RETURN;
    END IF;
    SELECT max(step) INTO level FROM generate_series(0, capacity) step
        WHERE (SELECT sum(least(wants, step)) FROM sora_chars_leases WHERE name = my_name) <= capacity;
    SELECT capacity - sum(least(wants, level)), count(*) FILTER (WHERE wants > level),
            count(*) FILTER (WHERE wants > level AND owner < my_owner)
        INTO spare, rivals, my_position FROM sora_chars_leases WHERE name = my_name;
    granted := least(my_wants, level);
    IF my_wants > level THEN
        my_position := my_position + floor(extract(epoch FROM now_at) / rotation)::bigint * spare;
        granted := level + (my_position % rivals < spare)::integer;
    END IF;
    granted := greatest(0, least(granted, capacity - others));
    UPDATE sora_chars_leases SET slots = greatest(my_slots, granted) WHERE name = my_name AND owner = my_owner;
END $$;
"""

ACQUIRE = "SELECT granted, rank, processes, cooldown FROM sora_chars_acquire_lease(%s, %s, %s, %s, %s, %s, %s, %s, %s)"
RELEASE = (
    "UPDATE sora_chars_leases SET has_left = true, wants = 0, slots = %s,"
    " expires_at = clock_timestamp() + make_interval(secs => %s) WHERE name = %s AND owner = %s RETURNING name"
)
