#!/bin/sh
# Makes the secrets that compose.yaml mounts, once, in compose/secrets: a password for each user of Redis (users.acl, and
# the URL of each program), the secret that signs webhooks, the first API key of the gateway, and Flower's password. To
# change one, edit its file; a password of Redis is in two files, users.acl and the URL (those of replication and of the
# Sentinels: replication.conf and sentinel.conf). With SENTINEL=1 the URLs lead to the Sentinels of the profile `sentinel`;
# REDIS_ADDRESS=host:6379/0 and REDIS_SCHEME=rediss are for another server.
set -eu
cd "$(dirname "$0")"
if [ -e secrets ]; then
  echo "compose/secrets exists; delete it first to make new secrets" >&2
  exit 1
fi

address=${REDIS_ADDRESS:-redis:6379/0} scheme=${REDIS_SCHEME:-redis}
if [ "${SENTINEL:-}" = 1 ]; then
  address=sentinel-1,sentinel-2,sentinel-3/mill/0 scheme=sentinel
fi

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

# Only the owner may enter the folder. The files are readable, because the containers run as other users.
umask 022
mkdir -m 700 secrets
while read -r line; do
  user=$(echo "$line" | cut -d ' ' -f 2)
  case "$line" in
    *">PASSWORD"*)
      password=$(random)
      case "$user" in
        replica) printf 'masteruser replica\nmasterauth %s\n' "$password" > secrets/replication.conf ;;
        sentinel)
          printf 'sentinel auth-user mill sentinel\nsentinel auth-pass mill %s\n' "$password" > secrets/sentinel.conf
          ;;
        *) printf '%s://%s:%s@%s\n' "$scheme" "$user" "$password" "$address" > "secrets/${user}_broker_url" ;;
      esac
      printf '%s\n' "$line" | sed "s/PASSWORD/$password/" >> secrets/users.acl
      ;;
    *) printf '%s\n' "$line" >> secrets/users.acl ;;
  esac
done < users.acl
printf 'whsec_%s\n' "$(head -c 32 /dev/urandom | base64)" > secrets/webhook_secret
printf 'sk-bm-%s\n' "$(random)" > secrets/gateway_api_key
printf 'batchmill:%s\n' "$(random)" > secrets/flower_basic_auth
echo "made compose/secrets; Flower's name and password are in secrets/flower_basic_auth, the API key of the gateway is in"
echo "secrets/gateway_api_key"
