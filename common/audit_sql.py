"""The statements by which an auditor settles, counts and prunes records (mikkoo.sql, version 5)."""

from __future__ import annotations

OWN = 'select pg_try_advisory_lock(%s, hashtext(%s))'
PLAN = 'set enable_seqscan = off'  # the statistics may be of when the table was empty
ENCODING = "select current_setting('server_encoding')"

# One arrival settles one record of its message_id, the oldest outstanding. `judged`: whether the content type
# is as recorded, where that took a look into the properties; NULL: not looked at yet, so in doubt it waits.
# Records are found by "lateral ... limit" and changed by an array of ctid, so that no plan does it otherwise
# than row by row: by statistics of when the table was empty it would read all of it for every message. As
# "received_at is null" would lead to the index of all that is outstanding, it is said by coalesce there.
FOUND = """
    with arrived as (
        select * from unnest(
            %s::uuid[], %s::bytea[], %s::bytea[], %s::bytea[], %s::bytea[], %s::float8[], %s::bool[]
        ) with ordinality as a (message_id, exchange, routing_key, content_type, body_sha256, age, judged, n)
    ), matched as (
        select a.n, a.judged, clock_timestamp() - a.age * interval '1 second' as seen_at, r.place,
            r.message_id, r.published_at, r.received_at, r.queue, r.exchange, r.content_type, r.properties,
            array_remove(array[
                case when convert_to(r.exchange, 'UTF8') <> a.exchange then 'exchange' end,
                case when convert_to(r.routing_key, 'UTF8') <> a.routing_key then 'routing_key' end,
                case when not coalesce(
                    a.judged, convert_to(coalesce(r.content_type, ''), 'UTF8') = a.content_type
                ) then 'content_type' end,
                case when sha256(convert_to(coalesce(r.payload, ''), 'UTF8')) <> a.body_sha256 then 'body' end
            ], null) as fields
        from arrived as a cross join lateral (
            select ctid as place, message_id, published_at, received_at, queue,
                coalesce(exchange, '') as exchange, routing_key, payload, content_type, properties
            from mikkoo.audit where message_id = a.message_id
            order by received_at is not null, published_at limit 1
        ) as r
    ), found as (
        select *, judged is null and properties ~ '(content_type|\\\\)' as doubtful from matched
    ),
"""
MARKED = """
    marked as (
        update mikkoo.audit as r set received_at = f.seen_at from found as f
        where r.ctid = f.place and coalesce(r.received_at, 'infinity') = 'infinity' and r.ctid = any(array(
            select place from found where received_at is null and doubtful is not true {condition}))
        returning r.message_id
    )
"""
DELETED = """
    deleted as (
        delete from mikkoo.audit where coalesce(received_at, 'infinity') = 'infinity' and ctid = any(array(
            select place from found where received_at is null and doubtful is not true and fields = '{}'))
        returning message_id
    ),
"""
FINDINGS = """
    select f.n - 1, convert_to(f.queue, 'UTF8'), convert_to(f.exchange, 'UTF8'), f.fields,
        coalesce(f.doubtful, false), s.message_id is not null,
        extract(epoch from f.seen_at - f.published_at)::float8,
        case when f.doubtful then convert_to(f.content_type, 'UTF8') end,
        case when f.doubtful then convert_to(f.properties, 'UTF8') end
    from found as f left join ({settled}) as s on s.message_id = f.message_id
"""
SETTLE = {
    'delete': FOUND
    + DELETED
    + MARKED.format(condition="and fields <> '{}'")
    + FINDINGS.format(settled='select message_id from deleted union all select message_id from marked'),
    'mark': FOUND + MARKED.format(condition='') + FINDINGS.format(settled='select message_id from marked'),
}
NOTE = """
    insert into mikkoo.audit_difference (message_id, auditor, queue, fields, exchange, routing_key,
        content_type, body_sha256, body_size)
    values (%s, %s, %s, %s, %s, %s, %s, %s, %s)
    on conflict do nothing returning 1
"""
COUNT = """
    insert into mikkoo.audit_tally as t (auditor, queue, exchange, hour, received, duplicates, differing,
        expired, unknown, unidentified, latency_total, latency_max)
    select %s, n.queue, n.exchange, date_trunc('hour', now()), n.received, n.duplicates, n.differing,
        n.expired, n.unknown, n.unidentified, n.latency_total, n.latency_max
    from unnest(
        %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[],
        %s::bigint[], %s::float8[], %s::float8[]
    ) as n (queue, exchange, received, duplicates, differing, expired, unknown, unidentified, latency_total,
        latency_max)
    order by n.queue, n.exchange
    on conflict (auditor, queue, exchange, hour) do update set
        received = t.received + excluded.received,
        duplicates = t.duplicates + excluded.duplicates,
        differing = t.differing + excluded.differing,
        expired = t.expired + excluded.expired,
        unknown = t.unknown + excluded.unknown,
        unidentified = t.unidentified + excluded.unidentified,
        latency_total = t.latency_total + excluded.latency_total,
        latency_max = greatest(t.latency_max, excluded.latency_max)
"""
OUTSTANDING = """
    select count(*), count(*) filter (where published_at < clock_timestamp() - %s * interval '1 second'),
        (select message_id::text from mikkoo.audit where received_at is null and exchange = any(%s)
         order by published_at limit 1)
    from mikkoo.audit where received_at is null and exchange = any(%s)
"""
EXPIRE = """
    delete from mikkoo.audit where ctid = any(array(
        select ctid from mikkoo.audit
        where received_at is null and exchange = any(%s)
            and published_at < clock_timestamp() - %s * interval '1 second'
        order by published_at limit %s for update skip locked))
    returning convert_to(queue, 'UTF8'), convert_to(exchange, 'UTF8'), message_id::text
"""
PRUNE = """
    delete from mikkoo.{table} where ctid = any(array(
        select ctid from mikkoo.{table}
        where {column} < clock_timestamp() - %s * interval '1 second' {own} limit %s))
"""
# Each auditor's differences and counts are kept for as long as it is told to: they are what tells of a loss.
# Of an hour, when it was over.
PRUNED = (
    ('audit', 'received_at', ''),
    ('audit_difference', 'seen_at', 'and auditor = %s'),
    ('audit_tally', "hour + interval '1 hour'", 'and auditor = %s'),
)
