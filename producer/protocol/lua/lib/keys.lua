-- Every Redis key name and channel name that the scripts use; `keys.py` holds the same names for Python. Scripts
-- build keys from ids instead of taking KEYS: the store is one Redis node (or a Sentinel pair), not a Cluster.

local LEASES = 'batchmill:leases'
local DEADLINES = 'batchmill:deadlines'
local QUEUES = 'batchmill:queues'
local OUTBOX = 'batchmill:outbox'
local DEAD = 'batchmill:dead'
local TOTALS = 'batchmill:totals'
local ENDPOINTS_DISABLED = 'batchmill:endpoints_disabled'
local WORKERS = 'batchmill:workers'
local BATCHES = 'batchmill:batches'
local BATCHES_DUE = 'batchmill:batches_due'
local UNUSABLE = 'batchmill:unusable'
local CELERY_ENDS = 'batchmill:celery_ends'
local INBOX = 'batchmill:inbox'
local INBOX_ARRIVED = 'batchmill:inbox:arrived'
local INBOX_TAKEN = 'batchmill:inbox:taken'
local INBOX_DOCUMENTS = 'batchmill:inbox:documents'
local SCHEDULED = 'batchmill:scheduled'
local USAGE = 'batchmill:usage'
local RECOUNT = 'batchmill:usage:recount'
local TENANTS = 'batchmill:tenants'
local WINDOW = 'batchmill:window'
local EXPIRING = 'batchmill:jobs:expiring'
local LAST_SWEEP = 'batchmill:last_sweep'

local function job_key(id) return 'batchmill:job:' .. id end
local function tokens_key(id) return 'batchmill:tokens:' .. id end
local function text_key(id) return 'batchmill:text:' .. id end
local function queued_key(queue) return 'batchmill:queued:' .. queue end
-- The last part is the tenant: its name has no colon, unlike a queue's.
local function backlog_key(queue, tenant) return 'batchmill:backlog:' .. queue .. ':' .. tenant end
local function turns_key(queue) return 'batchmill:turns:' .. queue end
local function used_key(queue) return 'batchmill:used:' .. queue end
local function under_way_key(queue) return 'batchmill:under_way:' .. queue end
local function state_index_key(state) return 'batchmill:jobs:state:' .. state end
local function tag_index_key(tag) return 'batchmill:jobs:tag:' .. tag end
local function tenant_index_key(tenant) return 'batchmill:jobs:tenant:' .. tenant end
local function idempotency_key(key) return 'batchmill:idempotency:' .. key end
local function forgotten_key(id) return 'batchmill:forgotten:' .. id end
local function event_key(id) return 'batchmill:event:' .. id end
local function dead_key(id) return 'batchmill:dead:' .. id end
local function failing_key(endpoint) return 'batchmill:failing:' .. endpoint end
local function worker_key(name) return 'batchmill:worker:' .. name end
local function batch_key(id) return 'batchmill:batch:' .. id end
local function batch_jobs_key(id) return 'batchmill:batch_jobs:' .. id end

local function events_channel(id) return 'batchmill:events:' .. id end
