# Receive webhooks: verify the signature over the raw body before using it.
#
#   gem install webrick        # a part of Ruby's standard library before 3.0
#   BATCHMILL_WEBHOOK_SECRET=whsec_… PORT=9000 ruby webhook_receiver.rb

require "json"
require "openssl"
require "webrick"

MAX_BODY_BYTES = 1024 * 1024
TOLERANCE_S = 300
KEY = ENV.fetch("BATCHMILL_WEBHOOK_SECRET").delete_prefix("whsec_").unpack1("m0")

# Delivery is at least once: in production, store ids in the transaction that uses the event.
SEEN = {}
LOCK = Mutex.new

# The header has one signature per secret that is valid at present.
def signed?(id, timestamp, body, header)
  return false unless timestamp.match?(/\A\d{1,12}\z/) && (Time.now.to_i - timestamp.to_i).abs <= TOLERANCE_S

  expected = "v1," + [OpenSSL::HMAC.digest("SHA256", KEY, "#{id}.#{timestamp}.#{body}")].pack("m0")
  header.split.any? { |signature| OpenSSL.secure_compare(signature, expected) }
end

# Accept types that you do not know: `batchmill webhooks test` sends webhook.test.
def use(event)
  puts "#{event["type"]} #{event["data"]["id"]}"
end

def respond(request)
  return 405 unless request.request_method == "POST"
  return 411 unless request["content-length"]
  return 413 if request["content-length"].to_i > MAX_BODY_BYTES

  body = request.body.to_s
  id, timestamp, signature = %w[id timestamp signature].map { |name| request["webhook-#{name}"].to_s }
  return 401 unless signed?(id, timestamp, body, signature)

  LOCK.synchronize do
    use(JSON.parse(body)) unless SEEN[id]
    SEEN[id] = true
  end
  204
end

$stdout.sync = true
server = WEBrick::HTTPServer.new(
  BindAddress: "127.0.0.1", Port: ENV.fetch("PORT", "9000").to_i,
  AccessLog: [], Logger: WEBrick::Log.new($stderr, WEBrick::Log::WARN)
)
server.mount_proc("/") { |request, response| response.status = respond(request) }
trap("TERM") { server.shutdown }
puts "listening on #{server.listeners.first.addr[1]}"
server.start
