-- Every Redis key name and channel name that the scripts use; `keys.py` holds the same names for Python. Scripts
-- build keys from ids instead of taking KEYS: the store is one Redis node (or a Sentinel pair), not a Cluster.

local LEASES = 'batchmill:leases'
local DEADLINES = 'batchmill:deadlines'
local QUEUES = 'batchmill:queues'
local OUTBOX = 'batchmill:outbox'
local SETTLED_EVENTS = 'batchmill:settled_events'
local FAST_HOSTS = 'batchmill:outbox_hosts:fast'
local FIRST_HOSTS = 'batchmill:outbox_hosts:first'
local MORE_HOSTS = 'batchmill:outbox_hosts:more'
local REPLAY_HOSTS = 'batchmill:outbox_hosts:replay'
local OUTBOX_TAKERS = 'batchmill:outbox_takers'
local DEAD = 'batchmill:dead'
local PLAIN_LETTERS = 'batchmill:plain_letters'
local TOTALS = 'batchmill:totals'
local PAUSED = 'batchmill:paused'
local ENDPOINTS_DISABLED = 'batchmill:endpoints_disabled'
local WORKERS = 'batchmill:workers'
local SESSIONS = 'batchmill:sessions'
local BATCHES = 'batchmill:batches'
local BATCHES_DUE = 'batchmill:batches_due'
local BATCH_INTAKES = 'batchmill:batch_intakes'
local UNUSABLE = 'batchmill:unusable'
local CELERY_ENDS = 'batchmill:celery_ends'
local CELERY_END_TAKERS = 'batchmill:celery_end_takers'
local TASKS_TAKEN = 'batchmill:tasks:taken'
local INBOX = 'batchmill:inbox'
local INBOX_ARRIVED = 'batchmill:inbox:arrived'
local INBOX_TAKEN = 'batchmill:inbox:taken'
local INBOX_DOCUMENTS = 'batchmill:inbox:documents'
local INBOX_TAKERS = 'batchmill:inbox:takers'
local SCHEDULED = 'batchmill:scheduled'
local USAGE = 'batchmill:usage'
local RECOUNT = 'batchmill:usage:recount'
local USED_TOKENS = 'batchmill:used_tokens'
local TENANTS = 'batchmill:tenants'
local WINDOW = 'batchmill:window'
local ADAPTERS = 'batchmill:adapters'
local STEERING_VECTORS = 'batchmill:steering_vectors'
local JOB_INDEXES = 'batchmill:jobs:'
local EXPIRING = 'batchmill:jobs:expiring'
local LAST_SWEEP = 'batchmill:last_sweep'
local REPAIR = 'batchmill:repair'
local MEMORY = 'batchmill:memory'
local LOAD_HISTORY = 'batchmill:load_history'
local SERVED = 'batchmill:served'
local LEFTOVERS = 'batchmill:leftovers'
local PAYLOADS = 'batchmill:payloads'
local PAYLOADS_UNUSED = 'batchmill:payloads_unused'
local MEDIA_DUE = 'batchmill:media_due'
local CORPORA = 'batchmill:corpora'
-- A pattern: the records of jobs, all their indexes, and those of what outlives them.
local RECORDS_AND_INDEXES = 'batchmill:[jl]*'
local CLOCK = 'batchmill:clock'

local function job_key(id) return 'batchmill:job:' .. id end
local function tokens_key(id) return 'batchmill:tokens:' .. id end
local function text_key(id) return 'batchmill:text:' .. id end
local function thoughts_key(id) return 'batchmill:thoughts:' .. id end
local function seals_key(id) return 'batchmill:seals:' .. id end
local function corpus_key(tenant, digest) return 'batchmill:corpus:' .. tenant .. ':' .. digest end
local function tenant_corpora_key(tenant) return 'batchmill:corpora:' .. tenant end
local function media_key(name) return 'batchmill:media:' .. name end
local function media_jobs_key(name) return 'batchmill:media_jobs:' .. name end
local function announced_key(queue) return 'batchmill:announced:' .. queue end
local function handed_key(session) return 'batchmill:handed:' .. session end
local function wants_key(model) return 'batchmill:wants:' .. model end
local function queued_key(queue) return 'batchmill:queued:' .. queue end
-- The last part is the tenant: its name has no colon, unlike a queue's.
local function backlog_key(queue, tenant) return 'batchmill:backlog:' .. queue .. ':' .. tenant end
local function turns_key(queue) return 'batchmill:turns:' .. queue end
local function used_key(queue) return 'batchmill:used:' .. queue end
local function state_index_key(state) return 'batchmill:jobs:state:' .. state end
local function tag_index_key(tag) return 'batchmill:jobs:tag:' .. tag end
local function tenant_index_key(tenant) return 'batchmill:jobs:tenant:' .. tenant end
-- Each tenant has its own keys. A tenant's name has no colon, so no two of them can mean the same entry.
local function idempotency_key(tenant, key) return 'batchmill:idempotency:' .. tenant .. ':' .. key end
-- `list` is a list that Celery's senders push to: a queue, or a priority of it.
local function arrived_key(list) return 'batchmill:tasks:arrived:' .. list end
local function taken_task_key(id) return 'batchmill:task:' .. id end
local function sent_task_key(sending) return 'batchmill:tasks:sent:' .. sending end
local function leftover_key(id) return 'batchmill:leftover:' .. id end
local function leftover_tag_key(tag) return 'batchmill:leftovers:tag:' .. tag end
local function leftover_tenant_key(tenant) return 'batchmill:leftovers:tenant:' .. tenant end
local function celery_result_key(id) return 'celery-task-meta-' .. id end -- Celery's own name
local function forgotten_key(id) return 'batchmill:forgotten:' .. id end
local function event_key(id) return 'batchmill:event:' .. id end
local function dead_key(id) return 'batchmill:dead:' .. id end
-- The class is `live` or `replay`; an endpoint is a tenant, a space and a URL.
local function due_events_key(class, endpoint) return 'batchmill:due_events:' .. class .. ':' .. endpoint end
local function due_endpoints_key(class, host) return 'batchmill:due_endpoints:' .. class .. ':' .. host end
local function host_claims_key(host) return 'batchmill:host_claims:' .. host end
local function endpoint_key(endpoint) return 'batchmill:endpoint:' .. endpoint end
local function host_key(host) return 'batchmill:host:' .. host end
local function worker_key(name) return 'batchmill:worker:' .. name end
local function file_key(id) return 'batchmill:file:' .. id end
local function batch_key(id) return 'batchmill:batch:' .. id end
-- The number of a day, counted from 1970-01-01.
local function used_tokens_key(day) return 'batchmill:used_tokens:' .. day end
local RECEIVER_SECRETS = 'batchmill:receiver_secrets'
local function receivers_key(tenant) return 'batchmill:receivers:' .. tenant end
local function rate_key(id) return 'batchmill:rate:' .. id end
local function batch_jobs_key(id) return 'batchmill:batch_jobs:' .. id end

local function events_channel(id) return 'batchmill:events:' .. id end
local function session_channel(session) return 'batchmill:session:' .. session end
