#!/usr/bin/env bash
# Makes a test CA and server certificates that old devices understand: RSA-2048, SHA-256.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: make-test-ca.sh [--sha1] FOLDER NAMES...

Writes ca.crt and ca.key into FOLDER, unless both are there already, and for each NAMES a certificate
with its key, called after the first name. NAMES is what devices enter as the server, one or more names
or addresses with commas in between:

    certs/make-test-ca.sh /tmp/lab relay.example.lan,10.0.0.5 localhost,127.0.0.1,::1

    --sha1   sign the server certificates with SHA-1, for devices from before about 2009 only

Nothing is ever overwritten. Keys get mode 0600. The CA is for tests: its key has no passphrase.
USAGE
}

fail() {
    echo "make-test-ca.sh: $1" >&2
    exit "${2:-1}"
}

digest=sha256
while [[ ${1-} == -* ]]; do
    case $1 in
        -h | --help) usage && exit 0 ;;
        --sha1) digest=sha1 ;;
        *) usage >&2 && exit 64 ;;
    esac
    shift
done
(($# >= 2)) || { usage >&2 && exit 64; }
command -v openssl >/dev/null || fail "openssl is missing; install it first"

folder=$1
shift

# `*.example.lan` cannot be a file's name everywhere, nor can `::1`.
file_of() {
    local first=${1%%,*}
    echo "$folder/${first//[*:]/_}"
}

# Everything is looked at before anything is written.
targets=()
for names in "$@"; do
    [[ $names =~ ^[A-Za-z0-9*._:-]+(,[A-Za-z0-9*._:-]+)*$ ]] || fail "not names or addresses: $names" 64
    target=$(file_of "$names")
    [[ $target != "$folder/ca" && " ${targets[*]-} " != *" $target "* ]] || fail "$target would be two things" 64
    targets+=("$target")
    for file in "$target.crt" "$target.key"; do
        [[ ! -e $file ]] || fail "$file exists; move it away first"
    done
done
if [[ -e $folder/ca.crt || -e $folder/ca.key ]]; then
    [[ -f $folder/ca.crt && -f $folder/ca.key ]] || fail "$folder has one of ca.crt and ca.key; move it away first"
fi

mkdir -p "$folder"
umask 077
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

openssl_quietly() {
    openssl "$@" 2>"$work/error" || { cat "$work/error" >&2 && fail "openssl $1 failed"; }
}

if [[ ! -e $folder/ca.crt ]]; then
    # Not by `req -x509`, whose extensions depend on the system's openssl.cnf.
    cat >"$work/ca.cnf" <<'CNF'
[req]
distinguished_name = name
x509_extensions = ca
prompt = no
[name]
CN = smtp-uplift test CA
[ca]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
CNF
    openssl_quietly genrsa -out "$folder/ca.key" 2048
    openssl_quietly req -new -x509 -config "$work/ca.cnf" -key "$folder/ca.key" -sha256 -days 3650 \
        -set_serial "0x$(openssl rand -hex 8)" -out "$folder/ca.crt"
    chmod 644 "$folder/ca.crt"
    echo "$folder/ca.crt: the CA; devices and the relay's ca_file import this one"
fi

for index in "${!targets[@]}"; do
    target=${targets[index]}
    IFS=, read -ra names <<<"${*:index+1:1}"
    alternatives=()
    for name in "${names[@]}"; do
        if [[ $name == *:* || $name =~ ^[0-9.]+$ ]]; then
            alternatives+=("IP:$name")
        else
            alternatives+=("DNS:$name")
        fi
    done
    # A common name has at most 64 characters; devices that are old enough look at nothing else.
    cat >"$work/server.cnf" <<CNF
[req]
distinguished_name = name
prompt = no
[name]
CN = ${names[0]:0:64}
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = $(IFS=, && echo "${alternatives[*]}")
CNF
    openssl_quietly genrsa -out "$work/server.key" 2048
    openssl_quietly req -new -config "$work/server.cnf" -key "$work/server.key" -sha256 -out "$work/server.csr"
    openssl_quietly x509 -req -in "$work/server.csr" -CA "$folder/ca.crt" -CAkey "$folder/ca.key" "-$digest" -days 825 \
        -set_serial "0x$(openssl rand -hex 8)" -extfile "$work/server.cnf" -extensions server -out "$work/server.crt"
    mv "$work/server.key" "$target.key"
    mv "$work/server.crt" "$target.crt"
    chmod 644 "$target.crt"
    echo "$target.crt, $target.key: ${names[*]}"
done
