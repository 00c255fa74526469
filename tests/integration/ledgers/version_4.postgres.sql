-- Made with pg_dump; see README.md.
SET check_function_bodies = false;

CREATE FUNCTION public.sora_chars_acquire_lease(my_owner text, my_name text, capacity integer, my_wants integer, my_slots integer, lease double precision, grace double precision, rotation double precision, my_cooldown double precision, OUT granted integer, OUT rank integer, OUT processes integer, OUT cooldown double precision) RETURNS record
    LANGUAGE plpgsql
    AS $$
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

CREATE TABLE public.sora_chars_entries (
    row_id bigint CONSTRAINT sora_chars_entries_place_not_null NOT NULL,
    key text NOT NULL,
    provider text NOT NULL,
    kind text NOT NULL,
    state text NOT NULL,
    request_json text NOT NULL,
    token_digest text,
    task_id text,
    owner text,
    result_json text,
    error_json text,
    credits double precision,
    created_at double precision NOT NULL,
    updated_at double precision NOT NULL,
    version integer NOT NULL
);

ALTER TABLE public.sora_chars_entries ALTER COLUMN row_id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.sora_chars_entries_place_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.sora_chars_leases (
    name text CONSTRAINT sora_chars_parts_name_not_null NOT NULL,
    owner text CONSTRAINT sora_chars_parts_holder_not_null NOT NULL,
    slots integer CONSTRAINT sora_chars_parts_places_not_null NOT NULL,
    wants integer CONSTRAINT sora_chars_parts_wanted_not_null NOT NULL,
    expires_at timestamp with time zone CONSTRAINT sora_chars_parts_until_not_null NOT NULL,
    has_left boolean DEFAULT false CONSTRAINT sora_chars_parts_has_left_not_null NOT NULL
);

CREATE TABLE public.sora_chars_ledger (
    version integer NOT NULL
);

CREATE TABLE public.sora_chars_limits (
    name text NOT NULL,
    cooldown_until timestamp with time zone DEFAULT '-infinity'::timestamp with time zone CONSTRAINT sora_chars_limits_paused_until_not_null NOT NULL,
    calm_until timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    last_seen_at timestamp with time zone DEFAULT '-infinity'::timestamp with time zone CONSTRAINT sora_chars_limits_heard_at_not_null NOT NULL
);

INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (1, 'succeeded/from-task', 'kie', 'character', 'succeeded', '{"clip":"1,3.5","from_task":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","name":"\u0420\u0435\u043a\u0441","prompt":"\u041f\u0451\u0441 \u0432 \u0448\u043b\u044f\u043f\u0435 \ud83c\udfa9, \u72ac, \u201cquoted\u201d \\ back\nline"}', '621bb9a65bdf2404287c9d396ae4a199d58871352a02842802593ceb6cb70f91', '73ab48767734d7c1c7fde805ec99108d', NULL, '{"character":{"id":"ch_db5b5fab8f4d3e27dda1494c73cf256d","name":"\u0420\u0435\u043a\u0441","provider":"kie","raw":{"character_id":"ch_db5b5fab8f4d3e27dda1494c73cf256d"},"task_id":"73ab48767734d7c1c7fde805ec99108d"},"completed_at":1780000061.638,"created_at":1780000061.625,"credits":0.0625,"model":"sora-2-characters-pro","provider":"kie","raw":{"completeTime":1780000061638,"costTime":0,"createTime":1780000061625,"creditsConsumed":0.0625,"failCode":null,"failMsg":null,"model":"sora-2-characters-pro","param":"{\"callBackUrl\":\"***\",\"input\":\"{\\\"origin_task_id\\\":\\\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\\\",\\\"timestamps\\\":\\\"1,3.5\\\",\\\"character_user_name\\\":\\\"\u0420\u0435\u043a\u0441\\\",\\\"character_prompt\\\":\\\"\u041f\u0451\u0441 \u0432 \u0448\u043b\u044f\u043f\u0435 \ud83c\udfa9, \u72ac, \u201cquoted\u201d \\\\\\\\ back\\\\nline\\\"}\",\"model\":\"sora-2-characters-pro\"}","resultJson":"{\"character_id\":\"ch_db5b5fab8f4d3e27dda1494c73cf256d\"}","state":"success","taskId":"73ab48767734d7c1c7fde805ec99108d"},"result":{"character_id":"ch_db5b5fab8f4d3e27dda1494c73cf256d"},"state":"success","task_id":"73ab48767734d7c1c7fde805ec99108d"}', NULL, 0.0625, 1780000061.625, 1780000061.625, 4);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (2, 'succeeded/video-ключ', 'kie-eu', 'character', 'succeeded', '{"prompt":"un chat noir tr\u00e8s \u00e9l\u00e9gant","safety":"pas de fum\u00e9e","video":"https://videos.example/chat%20noir.mp4"}', '80d20b5fc8d7e6a93701cdce2d0d581091f1bcd1dbe4e2b44cb913516c5262e5', '2fa91425cb0088539d2c67eda13ffe79', NULL, '{"character":{"id":"ch_79cb9e86830c71c2cdcc69292f45e678","provider":"kie-eu","raw":{"character_id":"ch_79cb9e86830c71c2cdcc69292f45e678"},"task_id":"2fa91425cb0088539d2c67eda13ffe79"},"completed_at":1780000123.131,"created_at":1780000123.125,"credits":0.0625,"model":"sora-2-characters","provider":"kie-eu","raw":{"completeTime":1780000123131,"costTime":0,"createTime":1780000123125,"creditsConsumed":0.0625,"failCode":null,"failMsg":null,"model":"sora-2-characters","param":"{\"input\":\"{\\\"character_file_url\\\":[\\\"https://videos.example/chat%20noir.mp4\\\"],\\\"character_prompt\\\":\\\"un chat noir tr\u00e8s \u00e9l\u00e9gant\\\",\\\"safety_instruction\\\":\\\"pas de fum\u00e9e\\\"}\",\"model\":\"sora-2-characters\"}","resultJson":"{\"character_id\":\"ch_79cb9e86830c71c2cdcc69292f45e678\"}","state":"success","taskId":"2fa91425cb0088539d2c67eda13ffe79"},"result":{"character_id":"ch_79cb9e86830c71c2cdcc69292f45e678"},"state":"success","task_id":"2fa91425cb0088539d2c67eda13ffe79"}', NULL, 0.0625, 1780000123.125, 1780000123.125, 4);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (3, 'succeeded/omni', 'kie', 'omni', 'succeeded', '{"audio_ids":["audio-1","audio-2"],"descriptions":"Fr\u00e4ulein S\u00fc\u00df, \u7518\u3044","image":"https://pictures.example/fr\u00e4ulein.png","name":"S\u00fc\u00df"}', '3491f4827e5620387abe38d0bad907c6360fb5e995ba8607d7e0f8e4f33f795e', 'character_e3eff9c0cf44dd3f89e7d15f17362f25', NULL, '{"character":{"id":"character_e3eff9c0cf44dd3f89e7d15f17362f25","provider":"kie","raw":{"characterId":"character_e3eff9c0cf44dd3f89e7d15f17362f25"}},"provider":"kie","raw":{"characterId":"character_e3eff9c0cf44dd3f89e7d15f17362f25"},"state":"success","task_id":"character_e3eff9c0cf44dd3f89e7d15f17362f25"}', NULL, NULL, 1780000184.625, 1780000184.625, 3);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (4, 'succeeded/task', 'kie', 'task', 'succeeded', '{"input":{"deep":{"list":[1,2.5,null,"\u00df"]},"n_frames":"10","prompt":"refused asked ''asked'' \"refused\" \ud83e\udd96","remove_watermark":true},"model":"kling-3.0/video"}', '6a7d0c155390a7f8155788ffb64c7d7f62b826ee8e233f18ed876b0b017a2ca6', '73f778aaf6fa5db8656abd72fb710734', NULL, '{"completed_at":1780000246.14,"created_at":1780000246.125,"credits":0.0625,"model":"kling-3.0/video","provider":"kie","raw":{"completeTime":1780000246140,"costTime":0,"createTime":1780000246125,"creditsConsumed":0.0625,"failCode":null,"failMsg":null,"model":"kling-3.0/video","param":"{\"callBackUrl\":\"***\",\"input\":\"{\\\"prompt\\\":\\\"refused asked ''asked'' \\\\\\\"refused\\\\\\\" \ud83e\udd96\\\",\\\"n_frames\\\":\\\"10\\\",\\\"remove_watermark\\\":true,\\\"deep\\\":{\\\"list\\\":[1,2.5,null,\\\"\u00df\\\"]}}\",\"model\":\"kling-3.0/video\"}","resultJson":"{\"resultUrls\":[\"http://127.0.0.1:18399/files/results/986e86cb0ab8ab67a26b7f62b1852f27.mp4\"]}","state":"success","taskId":"73f778aaf6fa5db8656abd72fb710734"},"result":{"resultUrls":["http://127.0.0.1:18399/files/results/986e86cb0ab8ab67a26b7f62b1852f27.mp4"]},"state":"success","task_id":"73f778aaf6fa5db8656abd72fb710734"}', NULL, 0.0625, 1780000246.125, 1780000246.125, 4);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (5, 'succeeded/kkiai', 'kkiai', 'character', 'succeeded', '{"clip":"0,2","from_task":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","name":"asked"}', 'b2eb3907067600604c2522e086e62a124c69020cfafbc0a8ae5a266b89ba6ecf', 'ch_d4ea65d003d716849f8558a628518867', NULL, '{"character":{"id":"ch_d4ea65d003d716849f8558a628518867","permalink":"https://sora.chatgpt.com/profile/d4ea65d00.3d716849f","picture_url":"http://127.0.0.1:18399/files/pictures/d4ea65d003d716849f8558a628518867.gif","provider":"kkiai","raw":{"id":"ch_d4ea65d003d716849f8558a628518867","permalink":"https://sora.chatgpt.com/profile/d4ea65d00.3d716849f","profile_picture_url":"http://127.0.0.1:18399/files/pictures/d4ea65d003d716849f8558a628518867.gif","username":"d4ea65d00.3d716849f"},"username":"d4ea65d00.3d716849f"},"provider":"kkiai","raw":{"id":"ch_d4ea65d003d716849f8558a628518867","permalink":"https://sora.chatgpt.com/profile/d4ea65d00.3d716849f","profile_picture_url":"http://127.0.0.1:18399/files/pictures/d4ea65d003d716849f8558a628518867.gif","username":"d4ea65d00.3d716849f"},"state":"success","task_id":"ch_d4ea65d003d716849f8558a628518867"}', NULL, NULL, 1780000307.625, 1780000307.625, 3);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (22, 'unknown/no-error', 'elsewhere', 'character', 'unknown', '{"clip":"0,2","from_task":"video_1"}', NULL, NULL, NULL, NULL, NULL, NULL, 1780001539.375, 1780001539.875, 3);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (13, 'running/watched', 'kie', 'character', 'running', '{"clip":"2,4","from_task":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","prompt":"ein B\u00e4r"}', '996a8adf5dfa1c1bbdc1579e44145f126c17b364f6b49a28b33d0261d74e4526', 'ed52a24135b00a5436a80bdf0023b682', 'db5b5fab8f4d4e279da1494c73cf256d', NULL, NULL, NULL, 1780000922.625, 1780000922.625, 3);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (14, 'running/resolved', 'kie', 'character', 'running', '{"clip":"2,4","from_task":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","prompt":"ein Wolf"}', '9f9a2a3899abcf2f06e645def36158cb5e2e0fc42deea6b0a580f330d003ed16', 'ffffffffffffffffffffffffffffffff', NULL, NULL, NULL, NULL, 1780000984.125, 1780001045.625, 4);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (20, 'sending/after-refusal', 'elsewhere', 'task', 'sending', '{"input":{"words":["asked","refused"]},"model":"m"}', 'da6c47e5e46153974fa8a84f77f56d3f2df7a889a5d07aa1a7f91992968d0245', NULL, 'db5b5fab8f4d4e279da1494c73cf256d', NULL, NULL, NULL, 1780001415.375, 1780001416.125, 4);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (21, 'sending/no-token', 'elsewhere', 'omni', 'sending', '{"descriptions":"d","image":"https://pictures.example/d.png"}', NULL, NULL, 'db5b5fab8f4d4e279da1494c73cf256d', NULL, NULL, NULL, 1780001477.625, 1780001477.875, 2);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (23, 'failed/no-error', 'elsewhere', 'character', 'failed', '{"clip":"0,2","from_task":"video_2"}', NULL, 'task-ü-1', NULL, NULL, NULL, 0.5, 1780001601.375, 1780001602.125, 4);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (24, 'running/not-held', 'elsewhere', 'character', 'running', '{"clip":"0,2","from_task":"video_3"}', 'a195530f16eafe6016664f156739c6209ce53f8e39dd41ba1bfc19370ca25995', 'task-2', NULL, NULL, NULL, 1.25, 1780001663.625, 1780001664.125, 3);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (12, 'asked/never-sent', 'kkiai', 'character', 'pending', '{"clip":"0,2","from_task":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}', 'b73fc140aacaadc9ecce5ecf6a5cf49536b47b77d4475c76f4db080e69634251', NULL, NULL, NULL, NULL, NULL, 1780000799.625, 1780000861.125, 4);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (15, 'asked/character', 'kie', 'character', 'pending', '{"clip":"1,3","from_task":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","name":"\u72ac","prompt":"\u660e\u65e5\u306e\u72ac"}', NULL, NULL, NULL, NULL, NULL, NULL, 1780001107.125, 1780001107.125, 1);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (16, 'asked/task', 'kie-eu', 'task', 'pending', '{"input":{"prompt":"state: asked"},"model":"wan/2-7-image"}', NULL, NULL, NULL, NULL, NULL, NULL, 1780001168.625, 1780001168.625, 1);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (17, 'asked/omni', 'kie', 'omni', 'pending', '{"audio_ids":[],"descriptions":"\u0107","image":"https://pictures.example/c.png"}', NULL, NULL, NULL, NULL, NULL, NULL, 1780001230.125, 1780001230.125, 1);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (19, 'refused/before-sending', 'elsewhere', 'character', 'rejected', '{"prompt":"eine Katze","video":"clips/katze.mp4"}', NULL, NULL, NULL, NULL, NULL, NULL, 1780001353.625, 1780001353.875, 2);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (10, 'unknown/no-answer', 'kie', 'character', 'unknown', '{"clip":"1,3","from_task":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","name":"Schr\u00f6dinger","prompt":"who knows?"}', 'be3ded674f33e66db4b3d1f1f58f8219613fa5e1bffc0ec7d0271b1c37913c16', NULL, NULL, NULL, '{"harmless":false,"message":"kie gave no answer to POST http://127.0.0.1:18399/api/v1/jobs/createTask: Server disconnected.","transient":true,"provider":"kie","type":"NoAnswerError"}', NULL, 1780000615.125, 1780000615.125, 3);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (6, 'failed/by-provider', 'kie', 'character', 'failed', '{"clip":"1,3","from_task":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","prompt":"a dragon"}', '3523f411e7a1975d7be3a1d996610c7185f7ed17b5ab5ff5f81c113a57a7c6b4', 'c7321cc007b37e14998092253deffa38', NULL, '{"completed_at":1780000369.137,"created_at":1780000369.125,"credits":0.0,"failure":{"code":"501","message":"\u751f\u6210\u306b\u5931\u6557\u3057\u307e\u3057\u305f: content refused"},"model":"sora-2-characters-pro","provider":"kie","raw":{"completeTime":1780000369137,"costTime":0,"createTime":1780000369125,"creditsConsumed":0.0,"failCode":"501","failMsg":"\u751f\u6210\u306b\u5931\u6557\u3057\u307e\u3057\u305f: content refused","model":"sora-2-characters-pro","param":"{\"callBackUrl\":\"***\",\"input\":\"{\\\"origin_task_id\\\":\\\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\\\",\\\"timestamps\\\":\\\"1,3\\\",\\\"character_prompt\\\":\\\"a dragon\\\"}\",\"model\":\"sora-2-characters-pro\"}","resultJson":"","state":"fail","taskId":"c7321cc007b37e14998092253deffa38"},"state":"fail","task_id":"c7321cc007b37e14998092253deffa38"}', '{"code":"501","message":"\u751f\u6210\u306b\u5931\u6557\u3057\u307e\u3057\u305f: content refused"}', 0, 1780000369.125, 1780000369.125, 4);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (7, 'failed/no-character', 'kie', 'character', 'failed', '{"clip":"1,3","from_task":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","prompt":"a ghost"}', '2b10e2d76ccdfd671922716ad59855b89d2c56252b32ecfe30417ce8a3cacc24', '012d0ea67ff122294b4d8474a3ea284d', NULL, '{"provider":"kie","result":"{}","state":"success","task_id":"012d0ea67ff122294b4d8474a3ea284d"}', '{"code":null,"message":"it holds no character"}', NULL, 1780000430.625, 1780000430.625, 4);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (11, 'failed/given-up', 'kie', 'omni', 'failed', '{"audio_ids":[],"descriptions":"b","image":"https://pictures.example/b.png"}', '77b624ab7cff9c69bae3924fd0da3912607a68f542fb5aef8f68a7f6ddb43572', NULL, NULL, '{"failure":{"code":"given_up","message":"a person gave it up"},"provider":"kie","state":"fail","task_id":""}', '{"code":"given_up","message":"a person gave it up"}', NULL, 1780000676.625, 1780000738.125, 4);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (18, 'asked/again', 'elsewhere', 'character', 'pending', '{"clip":"1,3","from_task":"asked"}', 'b4c9e14061c2fd453b36700e3b0da008db2189c711ac629f0f583089164e267d', NULL, NULL, NULL, '{"harmless":true,"message":"\u0421\u043b\u0438\u0448\u043a\u043e\u043c \u0447\u0430\u0441\u0442\u043e","transient":true,"provider":"elsewhere","status":429,"type":"RateLimitedError"}', NULL, 1780001291.625, 1780001292.125, 3);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (8, 'refused/content', 'kie', 'character', 'rejected', '{"clip":"1,3","from_task":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","prompt":"\u0447\u0442\u043e-\u0442\u043e \u0437\u0430\u043f\u0440\u0435\u0449\u0451\u043d\u043d\u043e\u0435"}', '476f05d29cb9d2579b1a6e38fdf03c4b3af695c918ae71f5f87985d0f90c554f', NULL, NULL, NULL, '{"code":422,"harmless":false,"message":"kie.ai answered 422: prompt: asked for what is not allowed \u2013 \u0437\u0430\u043f\u0440\u0435\u0449\u0435\u043d\u043e","transient":false,"provider":"kie","status":200,"type":"RequestRejectedError"}', NULL, 1780000492.125, 1780000492.125, 3);
INSERT INTO public.sora_chars_entries (row_id, key, provider, kind, state, request_json, token_digest, task_id, owner, result_json, error_json, credits, created_at, updated_at, version) OVERRIDING SYSTEM VALUE VALUES (9, 'refused/credits', 'kie', 'task', 'rejected', '{"input":{"prompt":"too dear"},"model":"sora-2-text-to-video"}', '21d76b400c80ef46a7c68aa837c7dde290426ebc85674c33426203d63659edaa', NULL, NULL, NULL, '{"code":402,"harmless":false,"hint":"Top up the kie.ai account.","message":"kie.ai answered 402: Insufficient credits","transient":false,"provider":"kie","status":200,"type":"InsufficientCreditsError"}', NULL, 1780000553.625, 1780000553.625, 3);

INSERT INTO public.sora_chars_leases (name, owner, slots, wants, expires_at, has_left) VALUES ('b01bbfa3521ce2efd3684c93849e5159df346ccd9606cac6940ae85038801304 poll', 'db5b5fab8f4d4e279da1494c73cf256d', 2, 0, '2026-11-28 12:23:41.158656+00', true);
INSERT INTO public.sora_chars_leases (name, owner, slots, wants, expires_at, has_left) VALUES ('b01bbfa3521ce2efd3684c93849e5159df346ccd9606cac6940ae85038801304 create', 'db5b5fab8f4d4e279da1494c73cf256d', 19, 0, '2026-11-28 12:23:50.160062+00', true);

INSERT INTO public.sora_chars_ledger (version) VALUES (4);

INSERT INTO public.sora_chars_limits (name, cooldown_until, calm_until, last_seen_at) VALUES ('b01bbfa3521ce2efd3684c93849e5159df346ccd9606cac6940ae85038801304 create', '2026-11-28 12:23:33.163176+00', '-infinity', '2026-11-28 12:23:33.163176+00');
INSERT INTO public.sora_chars_limits (name, cooldown_until, calm_until, last_seen_at) VALUES ('b01bbfa3521ce2efd3684c93849e5159df346ccd9606cac6940ae85038801304 poll', '2026-11-28 12:23:34.153597+00', '-infinity', '2026-11-28 12:23:34.153597+00');

SELECT pg_catalog.setval('public.sora_chars_entries_place_seq', 24, true);

ALTER TABLE ONLY public.sora_chars_entries
    ADD CONSTRAINT sora_chars_entries_key_key UNIQUE (key);

ALTER TABLE ONLY public.sora_chars_entries
    ADD CONSTRAINT sora_chars_entries_pkey PRIMARY KEY (row_id);

ALTER TABLE ONLY public.sora_chars_limits
    ADD CONSTRAINT sora_chars_limits_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.sora_chars_leases
    ADD CONSTRAINT sora_chars_parts_pkey PRIMARY KEY (name, owner);

CREATE INDEX sora_chars_entries_task_id_idx ON public.sora_chars_entries USING btree (task_id) WHERE (task_id IS NOT NULL);

CREATE INDEX sora_chars_entries_token_digest_idx ON public.sora_chars_entries USING btree (token_digest) WHERE (token_digest IS NOT NULL);

ALTER TABLE ONLY public.sora_chars_leases
    ADD CONSTRAINT sora_chars_parts_name_fkey FOREIGN KEY (name) REFERENCES public.sora_chars_limits(name);
