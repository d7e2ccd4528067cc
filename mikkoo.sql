-- Mikkoo's schema: convenience functions for inserting events into PgQ, an audit table, and what the relay calls.
--
-- Run it in every database that has a queue to relay, as a superuser or as a role with the rights of pgq_admin:
--
--     psql -f mikkoo.sql DATABASE
--
-- It is one statement, so one transaction: it is applied whole or not at all. Run it again at any time: after an
-- upgrade of Mikkoo, over the schema of Mikkoo 1 to 3 (audit records are kept), and after pg_restore (pg_dump
-- leaves out the trigger on pgq.tick). It needs PostgreSQL 13 and PgQ.
--
-- Three roles come with it, for your own login roles to be members of:
--
--     GRANT mikkoo_producer TO your_application;      -- inserts events
--     GRANT mikkoo_relay TO the_login_of_mikkood;     -- relays them
--     GRANT mikkoo_auditor TO the_login_of_auditors;  -- proves that they arrived
--
-- A consumer that deduplicates in this database needs, itself:
--
--     GRANT USAGE ON SCHEMA mikkoo TO your_consumer; GRANT SELECT, INSERT, DELETE ON mikkoo.inbox TO your_consumer;

DO $mikkoo$
DECLARE
    shipped CONSTANT integer := 5;  -- the version that this file makes; each has its upgrade below
    installed integer;
    owner name;
    role_name name;
    others text;
    signature text;
    path CONSTANT text := pg_catalog.current_setting('search_path');
    verbosity CONSTANT text := pg_catalog.current_setting('client_min_messages');
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    PERFORM set_config('client_min_messages', 'warning', true);  -- no "already exists, skipping"
    PERFORM pg_advisory_xact_lock(hashtextextended('mikkoo.sql', 0));  -- two runs at once

    -- What has to be there ------------------------------------------------------------------------------------

    IF current_setting('server_version_num')::integer < 130000 THEN
        RAISE EXCEPTION 'mikkoo.sql needs PostgreSQL 13 or newer, this is %', current_setting('server_version');
    END IF;
    IF to_regclass('pgq.retry_queue') IS NULL THEN
        RAISE EXCEPTION 'PgQ is not installed in database "%"', current_database()
            USING HINT = 'CREATE EXTENSION pgq; or, without C functions, run pgq_pl_only.sql. Then run this again.';
    END IF;
    IF NOT has_function_privilege('pgq.insert_event(text,text,text,text,text,text,text)', 'EXECUTE')
        OR NOT has_function_privilege('pgq.maint_retry_events()', 'EXECUTE')
        OR NOT has_table_privilege('pgq.retry_queue', 'DELETE')
    THEN
        RAISE EXCEPTION 'user "%" may not administer PgQ', current_user
            USING HINT = format('GRANT pgq_admin TO %I; or run this as a superuser.', current_user);
    END IF;

    SELECT pg_get_userbyid(nspowner) INTO owner FROM pg_namespace WHERE nspname = 'mikkoo';
    -- The functions run with their owner's rights: never take over those of somebody else's schema.
    IF owner <> current_user AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = owner) THEN
        RAISE EXCEPTION 'schema mikkoo belongs to "%", not to "%"', owner, current_user
            USING HINT = format('Run this as that role: SET ROLE %I.', owner);
    END IF;

    -- Roles: they belong to the whole cluster, so another database may have made them --------------------------

    FOREACH role_name IN ARRAY ARRAY['mikkoo_producer', 'mikkoo_auditor', 'mikkoo_relay'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
                EXECUTE format('COMMENT ON ROLE %I IS %L', role_name, CASE role_name
                    WHEN 'mikkoo_producer' THEN 'May insert events by the functions of schema mikkoo.'
                    WHEN 'mikkoo_auditor' THEN 'May settle audit records: what an auditor needs, and no more.'
                    ELSE 'May relay events from PgQ: what mikkood needs, and no more.' END);
            EXCEPTION
                WHEN insufficient_privilege THEN
                    RAISE EXCEPTION 'role "%" does not exist, and user "%" may not create it', role_name, current_user
                        USING HINT = 'An administrator has to run once: CREATE ROLE mikkoo_producer; '
                            'CREATE ROLE mikkoo_auditor; CREATE ROLE mikkoo_relay; GRANT pgq_reader TO mikkoo_relay;';
                WHEN duplicate_object OR unique_violation THEN
                    NULL;  -- made by another database at this moment
            END;
        END IF;
    END LOOP;

    -- Consuming needs SELECT on the event tables, of queues yet to come as well: only pgq_reader has that.
    IF NOT pg_has_role('mikkoo_relay', 'pgq_reader', 'MEMBER') THEN
        BEGIN
            GRANT pgq_reader TO mikkoo_relay;
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'user "%" may not make mikkoo_relay a member of pgq_reader', current_user
                    USING HINT = 'An administrator has to run once: GRANT pgq_reader TO mikkoo_relay;';
            WHEN unique_violation THEN
                NULL;
        END;
    END IF;

    -- Numbered upgrades ---------------------------------------------------------------------------------------

    CREATE SCHEMA IF NOT EXISTS mikkoo;
    CREATE TABLE IF NOT EXISTS mikkoo.schema_version (
        version    integer PRIMARY KEY,
        applied_at timestamptz NOT NULL DEFAULT now(),
        applied_by name NOT NULL DEFAULT current_user
    );
    SELECT coalesce(max(version), 0) INTO installed FROM mikkoo.schema_version;
    IF installed > shipped THEN
        RAISE EXCEPTION 'this database has version % of schema mikkoo, this file makes version %', installed, shipped
            USING HINT = 'Use the mikkoo.sql of the newest Mikkoo that relays from this database.';
    END IF;

    IF installed < 1 THEN
        -- Also turns the table of Mikkoo 1 to 3 into ours. The key holds published_at, as a table that is
        -- partitioned by it would demand; message_id alone is found by the key's first column.
        CREATE TABLE IF NOT EXISTS mikkoo.audit (
            message_id   uuid NOT NULL,
            event_id     bigint NOT NULL,
            queue        text NOT NULL,
            exchange     text,
            routing_key  text NOT NULL,
            payload      text,
            content_type text,
            properties   text,
            headers      text,
            published_at timestamptz NOT NULL DEFAULT now()
        );
        ALTER TABLE mikkoo.audit
            ALTER COLUMN exchange DROP NOT NULL,
            ALTER COLUMN payload DROP NOT NULL,
            ADD COLUMN IF NOT EXISTS received_at timestamptz,
            ADD CONSTRAINT audit_pkey PRIMARY KEY (message_id, published_at);
        DROP INDEX IF EXISTS mikkoo.audit_message_id;
        CREATE INDEX audit_published_at ON mikkoo.audit (published_at);
        INSERT INTO mikkoo.schema_version (version) VALUES (1);
    END IF;

    IF installed < 2 THEN
        CREATE TABLE mikkoo.dead_letter (
            id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            queue          text NOT NULL,
            consumer       text NOT NULL,
            event_id       bigint NOT NULL,
            event_time     timestamptz NOT NULL,
            event_txid     bigint NOT NULL,
            attempts       integer NOT NULL,
            exchange       text,
            routing_key    text,
            payload        text,
            content_type   text,
            properties     text,
            headers        text,
            reason_code    text NOT NULL,
            reason         text NOT NULL,
            first_failed_at timestamptz NOT NULL,
            last_failed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            dead_at        timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT dead_letter_event UNIQUE (queue, consumer, event_id, event_time)
        );
        CREATE INDEX dead_letter_dead_at ON mikkoo.dead_letter (queue, consumer, dead_at);
        CREATE TABLE mikkoo.failing_event (
            queue           text NOT NULL,
            consumer        text NOT NULL,
            event_id        bigint NOT NULL,
            event_time      timestamptz NOT NULL,
            first_failed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            CONSTRAINT failing_event_pkey PRIMARY KEY (queue, consumer, event_id, event_time)
        );
        CREATE TABLE mikkoo.batch_progress (
            queue            text NOT NULL,
            consumer         text NOT NULL,
            batch_id         bigint NOT NULL,
            tick_id          bigint NOT NULL,
            previous_tick_id bigint NOT NULL,
            tick_time        timestamptz NOT NULL,
            last_event_id    bigint NOT NULL,
            saved_at         timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT batch_progress_pkey PRIMARY KEY (queue, consumer)
        );
        INSERT INTO mikkoo.schema_version (version) VALUES (2);
    END IF;

    IF installed < 3 THEN
        ALTER TABLE mikkoo.batch_progress
            ALTER COLUMN last_event_id DROP NOT NULL,
            ADD COLUMN attempts integer NOT NULL DEFAULT 0,
            ADD COLUMN alone boolean NOT NULL DEFAULT false;
        INSERT INTO mikkoo.schema_version (version) VALUES (3);
    END IF;

    IF installed < 4 THEN
        -- Consumers' databases need not have PgQ: there mikkoo.connector.INBOX_SQL makes it.
        CREATE TABLE IF NOT EXISTS mikkoo.inbox (
            consumer   text NOT NULL,
            message_id text NOT NULL,
            handled_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT inbox_pkey PRIMARY KEY (consumer, message_id)
        );
        CREATE INDEX IF NOT EXISTS inbox_handled_at ON mikkoo.inbox (consumer, handled_at);
        INSERT INTO mikkoo.schema_version (version) VALUES (4);
    END IF;

    IF installed < 5 THEN
        -- One of the two holds a record: settling by deletion touches no more than the key and the first.
        DROP INDEX IF EXISTS mikkoo.audit_published_at;
        CREATE INDEX audit_outstanding ON mikkoo.audit (published_at) WHERE received_at IS NULL;
        CREATE INDEX audit_received ON mikkoo.audit (received_at) WHERE received_at IS NOT NULL;
        CREATE TABLE mikkoo.audit_tally (
            auditor       text NOT NULL,
            queue         text NOT NULL,
            exchange      text NOT NULL,
            hour          timestamptz NOT NULL,
            received      bigint NOT NULL DEFAULT 0,
            duplicates    bigint NOT NULL DEFAULT 0,
            differing     bigint NOT NULL DEFAULT 0,
            expired       bigint NOT NULL DEFAULT 0,
            unknown       bigint NOT NULL DEFAULT 0,
            unidentified  bigint NOT NULL DEFAULT 0,
            latency_total double precision NOT NULL DEFAULT 0,
            latency_max   double precision NOT NULL DEFAULT 0,
            CONSTRAINT audit_tally_pkey PRIMARY KEY (auditor, queue, exchange, hour)
        ) WITH (fillfactor = 50);
        CREATE TABLE mikkoo.audit_difference (
            message_id   uuid NOT NULL,
            auditor      text NOT NULL,
            queue        text NOT NULL,
            seen_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
            fields       text[] NOT NULL,
            exchange     text NOT NULL,
            routing_key  text NOT NULL,
            content_type text,
            body_sha256  bytea NOT NULL,
            body_size    bigint NOT NULL,
            CONSTRAINT audit_difference_pkey PRIMARY KEY (message_id, auditor, fields, body_sha256)
        );
        CREATE INDEX audit_difference_seen_at ON mikkoo.audit_difference (seen_at);
        INSERT INTO mikkoo.schema_version (version) VALUES (5);
    END IF;

    -- Inserting events ----------------------------------------------------------------------------------------
    -- SECURITY DEFINER, so that producers need no rights in PgQ; the fixed search_path also holds in PgQ's own
    -- functions, which set none.

    CREATE OR REPLACE FUNCTION mikkoo.insert_event(
        in_queue text, in_exchange text, in_routing_key text, in_payload text, in_content_type text,
        in_properties text, in_headers text
    ) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    BEGIN
        IF in_queue IS NULL THEN
            RAISE EXCEPTION 'in_queue is NULL' USING ERRCODE = 'null_value_not_allowed';
        END IF;
        IF in_routing_key IS NULL THEN
            RAISE EXCEPTION 'in_routing_key is NULL (queue "%")', in_queue
                USING ERRCODE = 'null_value_not_allowed', HINT = 'An empty routing key is ''''.';
        END IF;
        IF NOT EXISTS (SELECT FROM pgq.queue WHERE queue_name = in_queue) THEN
            RAISE EXCEPTION 'PgQ has no queue "%"', in_queue USING ERRCODE = 'undefined_object';
        END IF;
        RETURN pgq.insert_event(
            in_queue, in_routing_key, in_payload, in_exchange, in_content_type, in_properties, in_headers);
    END
    $body$;
    COMMENT ON FUNCTION mikkoo.insert_event(text, text, text, text, text, text, text) IS
'Inserts an event for RabbitMQ into a PgQ queue, all of it as given.
in_queue: the PgQ queue; NULL or unknown raises
in_exchange: the exchange; NULL is the default exchange
in_routing_key: the routing key; NULL raises
in_payload: the message body; NULL is an empty one
in_content_type, in_properties (a JSON object), in_headers (a JSON object): may be NULL
Returns the event id.';

    CREATE OR REPLACE FUNCTION mikkoo.insert_event(
        in_queue text, in_exchange text, in_routing_key text, in_payload text, in_content_type text
    ) RETURNS bigint LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
        SELECT mikkoo.insert_event(
            in_queue, in_exchange, in_routing_key, in_payload, in_content_type,
            jsonb_build_object('message_id', gen_random_uuid())::text,
            jsonb_build_object('pgq_queue', in_queue)::text)
    $body$;
    COMMENT ON FUNCTION mikkoo.insert_event(text, text, text, text, text) IS
'Inserts an event for RabbitMQ into a PgQ queue, with a new message_id and the header pgq_queue.
in_queue: the PgQ queue; NULL or unknown raises
in_exchange: the exchange; NULL is the default exchange
in_routing_key: the routing key; NULL raises
in_payload: the message body; NULL is an empty one
in_content_type: the property content_type; may be NULL
Returns the event id.';

    -- Auditing ------------------------------------------------------------------------------------------------

    CREATE OR REPLACE FUNCTION mikkoo.new_audit_record(
        in_message_id uuid, in_event_id bigint, in_queue text, in_exchange text, in_routing_key text,
        in_payload text, in_content_type text, in_properties text, in_headers text
    ) RETURNS mikkoo.audit LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
        INSERT INTO mikkoo.audit AS a (
            message_id, event_id, queue, exchange, routing_key, payload, content_type, properties, headers)
        VALUES (
            in_message_id, in_event_id, in_queue, in_exchange, in_routing_key, in_payload, in_content_type,
            in_properties, in_headers)
        RETURNING a.*
    $body$;
    COMMENT ON FUNCTION mikkoo.new_audit_record(uuid, bigint, text, text, text, text, text, text, text) IS
'Records in mikkoo.audit an event that was inserted by other means than insert_audited_event.
in_message_id: the property message_id of the event; in_event_id: its PgQ event id; the others as in insert_event.
NULL for message id, event id, queue or routing key raises. Returns the record.';

    CREATE OR REPLACE FUNCTION mikkoo.delete_audit_record(in_message_id uuid)
    RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    BEGIN
        DELETE FROM mikkoo.audit WHERE message_id = in_message_id;
        RETURN FOUND;
    END
    $body$;
    COMMENT ON FUNCTION mikkoo.delete_audit_record(uuid) IS
'Deletes the audit record of a message that has arrived. Returns whether there was one.
No role of Mikkoo may call it: grant it to the role that audits.';

    CREATE OR REPLACE FUNCTION mikkoo.insert_audited_event(
        in_queue text, in_exchange text, in_routing_key text, in_payload text, in_content_type text,
        in_properties text, in_headers text
    ) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    DECLARE
        properties jsonb := coalesce(nullif(in_properties, ''), '{}')::jsonb;
        message_id uuid;
        event_id bigint;
    BEGIN
        IF jsonb_typeof(properties) <> 'object' THEN
            RAISE EXCEPTION 'in_properties is no JSON object but %', jsonb_typeof(properties)
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
        BEGIN
            message_id := (properties ->> 'message_id')::uuid;
        EXCEPTION WHEN invalid_text_representation THEN
            RAISE EXCEPTION 'the message_id in in_properties is no UUID: %', properties ->> 'message_id'
                USING ERRCODE = 'invalid_parameter_value',
                    HINT = 'An audited event needs one; leave message_id out to have it generated.';
        END;
        IF message_id IS NULL THEN
            message_id := gen_random_uuid();
            in_properties := properties || jsonb_build_object('message_id', message_id);
        END IF;
        event_id := mikkoo.insert_event(
            in_queue, in_exchange, in_routing_key, in_payload, in_content_type, in_properties, in_headers);
        PERFORM mikkoo.new_audit_record(
            message_id, event_id, in_queue, in_exchange, in_routing_key, in_payload, in_content_type,
            in_properties, in_headers);
        RETURN event_id;
    END
    $body$;
    COMMENT ON FUNCTION mikkoo.insert_audited_event(text, text, text, text, text, text, text) IS
'Inserts an event as insert_event does, and records it in mikkoo.audit in the same transaction.
The message_id is taken from in_properties, where it must be a UUID; where there is none, one is added.
Returns the event id.';

    CREATE OR REPLACE FUNCTION mikkoo.insert_audited_event(
        in_queue text, in_exchange text, in_routing_key text, in_payload text, in_content_type text
    ) RETURNS bigint LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
        SELECT mikkoo.insert_audited_event(
            in_queue, in_exchange, in_routing_key, in_payload, in_content_type,
            NULL, jsonb_build_object('pgq_queue', in_queue)::text)
    $body$;
    COMMENT ON FUNCTION mikkoo.insert_audited_event(text, text, text, text, text) IS
'Inserts an event as insert_event does, with a new message_id and the header pgq_queue, and records it in
mikkoo.audit in the same transaction. Returns the event id.';

    CREATE OR REPLACE FUNCTION mikkoo.resend_audited(in_message_id uuid)
    RETURNS SETOF bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    DECLARE
        kept mikkoo.audit;
        properties jsonb;
        new_id bigint;
    BEGIN
        FOR kept IN SELECT * FROM mikkoo.audit WHERE message_id = in_message_id ORDER BY published_at FOR UPDATE LOOP
            properties := coalesce(nullif(kept.properties, ''), '{}')::jsonb;
            IF lower(properties ->> 'message_id') IS DISTINCT FROM in_message_id::text THEN
                kept.properties := properties || jsonb_build_object('message_id', in_message_id);
            END IF;
            new_id := mikkoo.insert_event(
                kept.queue, kept.exchange, kept.routing_key, kept.payload, kept.content_type,
                kept.properties, kept.headers);
            -- By clock_timestamp(): two records of one message_id must not have one key.
            UPDATE mikkoo.audit SET event_id = new_id, published_at = clock_timestamp(), received_at = NULL
                WHERE message_id = kept.message_id AND published_at = kept.published_at;
            RETURN NEXT new_id;
        END LOOP;
    END
    $body$;
    COMMENT ON FUNCTION mikkoo.resend_audited(uuid) IS
'Inserts the event of an audit record again, as recorded and with the same message_id; the record becomes one of the
new event: outstanding, and published now. Returns the new event id; nothing where there is no record.';

    CREATE OR REPLACE FUNCTION mikkoo.locate_event(in_queue text, in_event_id bigint)
    RETURNS TABLE (consumer text, event_time timestamptz, txid bigint, attempt integer, due timestamptz)
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    DECLARE
        events text;
    BEGIN
        SELECT queue_data_pfx INTO events FROM pgq.queue WHERE queue_name = in_queue;
        IF NOT FOUND THEN
            RETURN;
        END IF;
        RETURN QUERY EXECUTE format(
            'SELECT co_name, ev_time, ev_txid, coalesce(ev_retry, 0), NULL::timestamptz FROM %s AS e
                LEFT JOIN pgq.subscription ON sub_id = ev_owner
                LEFT JOIN pgq.consumer ON co_id = sub_consumer
            WHERE ev_id = $1 ORDER BY ev_txid', events::regclass) USING in_event_id;
        RETURN QUERY
            SELECT co_name, ev_time, NULL::bigint, ev_retry, ev_retry_after
            FROM pgq.retry_queue JOIN pgq.queue ON queue_id = ev_queue
                LEFT JOIN pgq.subscription ON sub_id = ev_owner
                LEFT JOIN pgq.consumer ON co_id = sub_consumer
            WHERE queue_name = in_queue AND ev_id = in_event_id ORDER BY ev_retry_after;
    END
    $body$;
    COMMENT ON FUNCTION mikkoo.locate_event(text, bigint) IS
'Where PgQ still has an event of a queue, not what is in it. A row of a table of events has its transaction, and the
consumer that it is for where it was retried; a row of the retry queue has neither transaction nor place in a batch yet,
and is due at a time. Nothing: PgQ has it no more. Reads all events of the queue.';

    -- For the relay -------------------------------------------------------------------------------------------

    CREATE OR REPLACE FUNCTION mikkoo.move_retries()
    RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    DECLARE
        moved integer := 0;
        step integer;
    BEGIN
        LOOP
            step := pgq.maint_retry_events();
            moved := moved + step;
            EXIT WHEN step = 0 OR moved >= 10000;  -- a transaction of about two seconds; call again for the rest
        END LOOP;
        RETURN moved;
    END
    $body$;
    COMMENT ON FUNCTION mikkoo.move_retries() IS
'Puts the events whose retry is due back into their queues, at most 10,000 at a time, as pgqd does every half minute.
Returns how many; call it again if that is 10,000.';

    CREATE OR REPLACE FUNCTION mikkoo.notify_tick()
    RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
    DECLARE
        queue text := (SELECT queue_name FROM pgq.queue WHERE queue_id = NEW.tick_queue);
    BEGIN
        IF octet_length(queue) < 8000 THEN  -- a longer payload is an error, and a tick must never fail
            PERFORM pg_notify('mikkoo_tick', queue);
        END IF;
        RETURN NULL;
    END
    $body$;
    COMMENT ON FUNCTION mikkoo.notify_tick() IS
'Trigger of pgq.tick: notifies channel mikkoo_tick, with the name of the queue as payload, when a tick commits.';

    -- The relay works without it, only later: it then asks every wait_duration seconds.
    IF NOT EXISTS (
        SELECT FROM pg_trigger WHERE tgrelid = 'pgq.tick'::regclass AND tgname = 'mikkoo_tick'
    ) THEN
        BEGIN
            CREATE TRIGGER mikkoo_tick AFTER INSERT ON pgq.tick FOR EACH ROW EXECUTE FUNCTION mikkoo.notify_tick();
            COMMENT ON TRIGGER mikkoo_tick ON pgq.tick IS
                'Wakes the relay: notifies channel mikkoo_tick with the name of the queue.';
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE WARNING 'no trigger on pgq.tick: the relay will ask for events instead of being woken'
                USING HINT = format('Its owner "%s" can run this file again.',
                    (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'pgq.tick'::regclass));
        END;
    END IF;

    -- Rights --------------------------------------------------------------------------------------------------

    FOREACH signature IN ARRAY ARRAY[
        'mikkoo.insert_event(text,text,text,text,text)',
        'mikkoo.insert_event(text,text,text,text,text,text,text)',
        'mikkoo.insert_audited_event(text,text,text,text,text)',
        'mikkoo.insert_audited_event(text,text,text,text,text,text,text)',
        'mikkoo.new_audit_record(uuid,bigint,text,text,text,text,text,text,text)',
        'mikkoo.delete_audit_record(uuid)',
        'mikkoo.resend_audited(uuid)',
        'mikkoo.locate_event(text,bigint)',
        'mikkoo.move_retries()',
        'mikkoo.notify_tick()'
    ] LOOP
        -- CREATE OR REPLACE keeps the owner, whose rights these functions lend.
        EXECUTE format('ALTER FUNCTION %s OWNER TO CURRENT_USER', signature::regprocedure);
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature::regprocedure);
    END LOOP;
    REVOKE ALL ON SCHEMA mikkoo FROM PUBLIC;
    REVOKE ALL ON mikkoo.audit, mikkoo.audit_tally, mikkoo.audit_difference, mikkoo.schema_version,
        mikkoo.dead_letter, mikkoo.failing_event, mikkoo.batch_progress, mikkoo.inbox FROM PUBLIC;

    GRANT USAGE ON SCHEMA mikkoo TO mikkoo_producer, mikkoo_auditor, mikkoo_relay;
    GRANT EXECUTE ON FUNCTION
        mikkoo.insert_event(text, text, text, text, text),
        mikkoo.insert_event(text, text, text, text, text, text, text),
        mikkoo.insert_audited_event(text, text, text, text, text),
        mikkoo.insert_audited_event(text, text, text, text, text, text, text),
        mikkoo.new_audit_record(uuid, bigint, text, text, text, text, text, text, text)
        TO mikkoo_producer;
    GRANT EXECUTE ON FUNCTION mikkoo.move_retries() TO mikkoo_relay;
    GRANT SELECT ON mikkoo.schema_version TO mikkoo_relay, mikkoo_auditor;
    GRANT SELECT, INSERT, UPDATE, DELETE ON mikkoo.dead_letter TO mikkoo_relay;
    GRANT SELECT, INSERT, DELETE ON mikkoo.failing_event TO mikkoo_relay;
    GRANT SELECT, INSERT, UPDATE, DELETE ON mikkoo.batch_progress TO mikkoo_relay;
    GRANT SELECT, UPDATE (received_at), DELETE ON mikkoo.audit TO mikkoo_auditor;
    GRANT SELECT, INSERT, UPDATE, DELETE ON mikkoo.audit_tally TO mikkoo_auditor;
    GRANT SELECT, INSERT, DELETE ON mikkoo.audit_difference TO mikkoo_auditor;
    GRANT SELECT ON mikkoo.dead_letter TO mikkoo_auditor;
    GRANT EXECUTE ON FUNCTION mikkoo.resend_audited(uuid), mikkoo.locate_event(text, bigint) TO mikkoo_auditor;

    -- Retries cost milliseconds with it, and a scan of the batch for each event without.
    BEGIN
        GRANT EXECUTE ON FUNCTION pgq.event_retry_raw(
            text, text, timestamptz, bigint, timestamptz, integer, text, text, text, text, text, text
        ) TO mikkoo_relay;
    EXCEPTION WHEN insufficient_privilege THEN
        NULL;  -- said below
    END;
    IF NOT has_function_privilege('mikkoo_relay',
        'pgq.event_retry_raw(text,text,timestamptz,bigint,timestamptz,integer,text,text,text,text,text,text)',
        'EXECUTE')
    THEN
        RAISE WARNING 'mikkoo_relay may not call pgq.event_retry_raw: retries in large batches will be slow'
            USING HINT = 'The owner of PgQ''s functions can run this file again.';
    END IF;

    IF installed = 0 THEN
        -- With Mikkoo 1 to 3 everybody could call these who could use the schema.
        SELECT string_agg(DISTINCT quote_ident(pg_get_userbyid(acl.grantee)), ', ') INTO others
            FROM pg_namespace, aclexplode(nspacl) AS acl
            WHERE nspname = 'mikkoo' AND acl.privilege_type = 'USAGE' AND acl.grantee NOT IN (0, nspowner)
                AND pg_get_userbyid(acl.grantee) NOT IN ('mikkoo_producer', 'mikkoo_auditor', 'mikkoo_relay')
                AND NOT pg_has_role(acl.grantee, 'mikkoo_producer', 'MEMBER');
        IF others IS NOT NULL THEN
            RAISE WARNING 'these roles may use schema mikkoo, but may no longer call its functions: %', others
                USING HINT = 'Where they insert events: GRANT mikkoo_producer TO ' || others || ';';
        END IF;
    END IF;

    -- Comments ------------------------------------------------------------------------------------------------

    COMMENT ON SCHEMA mikkoo IS 'Mikkoo, the relay from PgQ to RabbitMQ: inserting and auditing events.';
    COMMENT ON TABLE mikkoo.schema_version IS 'The upgrades of schema mikkoo that mikkoo.sql has applied.';
    COMMENT ON COLUMN mikkoo.schema_version.version IS 'Number of the upgrade; the highest is the schema''s version';
    COMMENT ON COLUMN mikkoo.schema_version.applied_at IS 'When it was applied';
    COMMENT ON COLUMN mikkoo.schema_version.applied_by IS 'Who applied it';
    COMMENT ON TABLE mikkoo.audit IS 'Every audited event, to compare with what arrived in RabbitMQ.';
    COMMENT ON COLUMN mikkoo.audit.message_id IS 'AMQP property message_id';
    COMMENT ON COLUMN mikkoo.audit.event_id IS 'PgQ event id';
    COMMENT ON COLUMN mikkoo.audit.queue IS 'PgQ queue';
    COMMENT ON COLUMN mikkoo.audit.exchange IS 'Exchange; NULL is the default exchange';
    COMMENT ON COLUMN mikkoo.audit.routing_key IS 'Routing key';
    COMMENT ON COLUMN mikkoo.audit.payload IS 'Message body';
    COMMENT ON COLUMN mikkoo.audit.content_type IS 'AMQP property content_type';
    COMMENT ON COLUMN mikkoo.audit.properties IS 'AMQP properties, a JSON object';
    COMMENT ON COLUMN mikkoo.audit.headers IS 'AMQP headers, a JSON object';
    COMMENT ON COLUMN mikkoo.audit.published_at IS 'When the transaction began that inserted the event';
    COMMENT ON COLUMN mikkoo.audit.received_at IS 'When the audit saw the message in RabbitMQ; NULL: not yet';
    COMMENT ON CONSTRAINT audit_pkey ON mikkoo.audit IS 'Holds published_at so that the table can be partitioned by it';
    COMMENT ON INDEX mikkoo.audit_outstanding IS 'For counting what is late, and for what is older than `keep`';
    COMMENT ON INDEX mikkoo.audit_received IS 'For deleting marked records by age';
    COMMENT ON TABLE mikkoo.audit_tally IS 'What auditors have counted, by hour; pruned by them.';
    COMMENT ON COLUMN mikkoo.audit_tally.auditor IS 'Name of the auditor';
    COMMENT ON COLUMN mikkoo.audit_tally.queue IS 'PgQ queue; empty for messages without a record';
    COMMENT ON COLUMN mikkoo.audit_tally.exchange IS 'Exchange; empty is the default exchange';
    COMMENT ON COLUMN mikkoo.audit_tally.hour IS 'Hour in which they were counted';
    COMMENT ON COLUMN mikkoo.audit_tally.received IS 'Records whose message has arrived, the differing among them';
    COMMENT ON COLUMN mikkoo.audit_tally.duplicates IS 'Messages that arrived again';
    COMMENT ON COLUMN mikkoo.audit_tally.differing IS 'Messages that were not as recorded: audit_difference';
    COMMENT ON COLUMN mikkoo.audit_tally.expired IS 'Records removed by age whose message had not arrived';
    COMMENT ON COLUMN mikkoo.audit_tally.unknown IS 'Messages with a message_id that has no record';
    COMMENT ON COLUMN mikkoo.audit_tally.unidentified IS 'Messages without a message_id, or with one that is no UUID';
    COMMENT ON COLUMN mikkoo.audit_tally.latency_total IS 'Seconds from published_at to arrival, summed over received';
    COMMENT ON COLUMN mikkoo.audit_tally.latency_max IS 'Seconds from published_at to arrival, the longest';
    COMMENT ON CONSTRAINT audit_tally_pkey ON mikkoo.audit_tally IS 'One row is counted up for an hour';
    COMMENT ON TABLE mikkoo.audit_difference IS 'Messages that arrived otherwise than recorded; pruned by auditors.';
    COMMENT ON COLUMN mikkoo.audit_difference.message_id IS 'AMQP property message_id';
    COMMENT ON COLUMN mikkoo.audit_difference.auditor IS 'Name of the auditor';
    COMMENT ON COLUMN mikkoo.audit_difference.queue IS 'PgQ queue';
    COMMENT ON COLUMN mikkoo.audit_difference.seen_at IS 'When it was found';
    COMMENT ON COLUMN mikkoo.audit_difference.fields IS 'What differs: exchange, routing_key, content_type, body';
    COMMENT ON COLUMN mikkoo.audit_difference.exchange IS 'Exchange as it arrived';
    COMMENT ON COLUMN mikkoo.audit_difference.routing_key IS 'Routing key as it arrived';
    COMMENT ON COLUMN mikkoo.audit_difference.content_type IS 'AMQP property content_type as it arrived';
    COMMENT ON COLUMN mikkoo.audit_difference.body_sha256 IS 'SHA-256 of the body that arrived';
    COMMENT ON COLUMN mikkoo.audit_difference.body_size IS 'Bytes of the body that arrived';
    COMMENT ON CONSTRAINT audit_difference_pkey ON mikkoo.audit_difference IS 'A redelivery is the same difference';
    COMMENT ON INDEX mikkoo.audit_difference_seen_at IS 'For pruning by age';

    COMMENT ON TABLE mikkoo.dead_letter IS 'Events that were given up, whole, each with its reason: mikkood dead-letters.';
    COMMENT ON COLUMN mikkoo.dead_letter.id IS 'Number of the dead letter';
    COMMENT ON COLUMN mikkoo.dead_letter.queue IS 'PgQ queue';
    COMMENT ON COLUMN mikkoo.dead_letter.consumer IS 'PgQ consumer that gave it up';
    COMMENT ON COLUMN mikkoo.dead_letter.event_id IS 'PgQ event id';
    COMMENT ON COLUMN mikkoo.dead_letter.event_time IS 'When the event was inserted';
    COMMENT ON COLUMN mikkoo.dead_letter.event_txid IS 'Transaction of its last delivery';
    COMMENT ON COLUMN mikkoo.dead_letter.attempts IS 'How many times it was tried';
    COMMENT ON COLUMN mikkoo.dead_letter.exchange IS 'Exchange (ev_extra1)';
    COMMENT ON COLUMN mikkoo.dead_letter.routing_key IS 'Routing key (ev_type)';
    COMMENT ON COLUMN mikkoo.dead_letter.payload IS 'Message body (ev_data)';
    COMMENT ON COLUMN mikkoo.dead_letter.content_type IS 'AMQP property content_type (ev_extra2)';
    COMMENT ON COLUMN mikkoo.dead_letter.properties IS 'AMQP properties, a JSON object (ev_extra3)';
    COMMENT ON COLUMN mikkoo.dead_letter.headers IS 'AMQP headers, a JSON object (ev_extra4)';
    COMMENT ON COLUMN mikkoo.dead_letter.reason_code IS 'untranslatable, returned, refused, nacked, kills_link or kills_worker';
    COMMENT ON COLUMN mikkoo.dead_letter.reason IS 'What was wrong at the last attempt';
    COMMENT ON COLUMN mikkoo.dead_letter.first_failed_at IS 'When it failed first';
    COMMENT ON COLUMN mikkoo.dead_letter.last_failed_at IS 'When it failed last';
    COMMENT ON COLUMN mikkoo.dead_letter.dead_at IS 'When it was given up';
    COMMENT ON CONSTRAINT dead_letter_event ON mikkoo.dead_letter IS 'An event that is given up again replaces itself';
    COMMENT ON INDEX mikkoo.dead_letter_dead_at IS 'For listing dead letters of a queue by age';
    COMMENT ON TABLE mikkoo.failing_event IS 'When events that are being retried failed first.';
    COMMENT ON COLUMN mikkoo.failing_event.queue IS 'PgQ queue';
    COMMENT ON COLUMN mikkoo.failing_event.consumer IS 'PgQ consumer';
    COMMENT ON COLUMN mikkoo.failing_event.event_id IS 'PgQ event id';
    COMMENT ON COLUMN mikkoo.failing_event.event_time IS 'When the event was inserted';
    COMMENT ON COLUMN mikkoo.failing_event.first_failed_at IS 'When it failed first';
    COMMENT ON CONSTRAINT failing_event_pkey ON mikkoo.failing_event IS 'An event id alone may come twice after a failover';
    COMMENT ON TABLE mikkoo.batch_progress IS 'How far a batch that is being relayed has got; removed when it is finished.';
    COMMENT ON COLUMN mikkoo.batch_progress.queue IS 'PgQ queue';
    COMMENT ON COLUMN mikkoo.batch_progress.consumer IS 'PgQ consumer';
    COMMENT ON COLUMN mikkoo.batch_progress.batch_id IS 'PgQ batch; with the ticks, which batch this row is about';
    COMMENT ON COLUMN mikkoo.batch_progress.tick_id IS 'Tick that ends the batch';
    COMMENT ON COLUMN mikkoo.batch_progress.previous_tick_id IS 'Tick that begins the batch';
    COMMENT ON COLUMN mikkoo.batch_progress.tick_time IS 'Time of the tick that ends the batch';
    COMMENT ON COLUMN mikkoo.batch_progress.last_event_id IS 'Every event up to this one is judged; NULL: none yet';
    COMMENT ON COLUMN mikkoo.batch_progress.saved_at IS 'When this was saved';
    COMMENT ON COLUMN mikkoo.batch_progress.attempts IS 'How many processes opened the batch since it last got on';
    COMMENT ON COLUMN mikkoo.batch_progress.alone IS 'The first event behind is relayed alone: it ended processes';
    COMMENT ON TABLE mikkoo.inbox IS 'Messages that consumers with deduplication have handled; pruned by them.';
    COMMENT ON COLUMN mikkoo.inbox.consumer IS 'SERVICE.CONSUMER, as registered with the connector';
    COMMENT ON COLUMN mikkoo.inbox.message_id IS 'AMQP property message_id';
    COMMENT ON COLUMN mikkoo.inbox.handled_at IS 'When the transaction began that handled it';
    COMMENT ON CONSTRAINT inbox_pkey ON mikkoo.inbox IS 'Each message once for each consumer';
    COMMENT ON INDEX mikkoo.inbox_handled_at IS 'For pruning by age';
    COMMENT ON CONSTRAINT batch_progress_pkey ON mikkoo.batch_progress IS 'A consumer has one open batch at a time';

    -- A transaction around this file goes on as it was.
    PERFORM set_config('client_min_messages', verbosity, true);
    PERFORM set_config('search_path', path, true);
END
$mikkoo$;
