"""How processes on one PostgreSQL database divide a limit between them; see `sora_chars.sharing`.

A row for each process says how many places are its own, and until when. The sum of these never grows over the limit: a
process gets what nobody has, and its own shrink only by what it says itself, so that a lost answer does no harm.

All times are the database's. When its clock is set back, what is stored is set back with it. When it is set forward all
look dead at once, and nobody grows until those who are not have been heard. So those who live never make more than the
limit together; only what somebody sent who ended just before may come on top of it, for one window.
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
CREATE FUNCTION sora_chars_divide(
    my_holder text, my_name text, whole integer, my_wanted integer, my_held integer,
    lease double precision, grace double precision, turn double precision, my_pause double precision,
    OUT granted integer, OUT rank integer, OUT processes integer, OUT paused double precision
) LANGUAGE plpgsql AS $$
DECLARE
    now_at timestamptz;  -- now() would be when this began to wait for its turn
    shared sora_chars_limits;
    set_back interval;
    others integer;
    level integer;  -- what everybody can have who wants as much
    spare integer;  -- what is left then, by turns for the rivals who want more
    rivals integer;
    my_place bigint;
BEGIN
    INSERT INTO sora_chars_limits (name) VALUES (my_name) ON CONFLICT DO NOTHING;
    SELECT * INTO shared FROM sora_chars_limits WHERE name = my_name FOR UPDATE;
    now_at := clock_timestamp();
    IF now_at < shared.heard_at THEN
        set_back := shared.heard_at - now_at;
        shared.paused_until := shared.paused_until - set_back;
        shared.calm_until := shared.calm_until - set_back;
        UPDATE sora_chars_parts SET until = until - set_back WHERE name = my_name;
    END IF;
    IF shared.calm_until < now_at THEN
        -- Who was not heard has died, unless nobody was: then the database was away, and they go on by themselves, or
        -- its clock was set forward. Until they are back nobody grows.
        IF shared.heard_at < now_at - make_interval(secs => lease)
            AND EXISTS (SELECT FROM sora_chars_parts
                WHERE name = my_name AND holder <> my_holder AND NOT has_left AND until < now_at) THEN
            shared.calm_until := now_at + make_interval(secs => lease);
        ELSE
            DELETE FROM sora_chars_parts WHERE name = my_name AND until < now_at AND holder <> my_holder;
        END IF;
    END IF;
    shared.paused_until := greatest(shared.paused_until, now_at + make_interval(secs => my_pause));
    UPDATE sora_chars_limits
        SET paused_until = shared.paused_until, calm_until = shared.calm_until, heard_at = now_at
        WHERE name = my_name;
    paused := greatest(0, extract(epoch FROM shared.paused_until - now_at));

    INSERT INTO sora_chars_parts AS mine
        VALUES (my_name, my_holder, my_held, my_wanted, now_at + make_interval(secs => grace))
        ON CONFLICT (name, holder) DO UPDATE
        SET places = EXCLUDED.places, wanted = EXCLUDED.wanted, until = EXCLUDED.until, has_left = false;
    SELECT coalesce(sum(places) FILTER (WHERE holder <> my_holder), 0),
            count(*) FILTER (WHERE NOT has_left), count(*) FILTER (WHERE NOT has_left AND holder < my_holder)
        INTO others, processes, rank FROM sora_chars_parts WHERE name = my_name;
    IF shared.calm_until >= now_at THEN
        granted := my_held;
        RETURN;
    END IF;
    SELECT max(step) INTO level FROM generate_series(0, whole) step
        WHERE (SELECT sum(least(wanted, step)) FROM sora_chars_parts WHERE name = my_name) <= whole;
    SELECT whole - sum(least(wanted, level)), count(*) FILTER (WHERE wanted > level),
            count(*) FILTER (WHERE wanted > level AND holder < my_holder)
        INTO spare, rivals, my_place FROM sora_chars_parts WHERE name = my_name;
    granted := least(my_wanted, level);
    IF my_wanted > level THEN
        my_place := my_place + floor(extract(epoch FROM now_at) / turn)::bigint * spare;
        granted := level + (my_place % rivals < spare)::integer;
    END IF;
    granted := greatest(0, least(granted, whole - others));
    UPDATE sora_chars_parts SET places = greatest(my_held, granted) WHERE name = my_name AND holder = my_holder;
END $$;
"""

DIVIDE = "SELECT granted, rank, processes, paused FROM sora_chars_divide(%s, %s, %s, %s, %s, %s, %s, %s, %s)"
LEAVE = (
    "UPDATE sora_chars_parts SET has_left = true, wanted = 0, places = %s,"
    " until = clock_timestamp() + make_interval(secs => %s) WHERE name = %s AND holder = %s RETURNING name"
)
