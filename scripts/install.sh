#!/usr/bin/env bash
# Installs the daemon on this gateway: a virtual environment in /opt/enforcer, the command, the systemd unit, a
# sample configuration and bash's completion. It changes no file in /etc/enforcer and starts nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
home=/opt/enforcer

scripts/setup.sh --gateway "$home"
install -D -m 644 -t "$home/share" README.md LICENSE
install -D -m 644 -t "$home/share/docs" docs/*.md docs/enforcer.sample.yaml docs/enforcer.schema.json
install -D -m 644 -t "$home/share/docs/examples" docs/examples/*
install -D -m 644 -t /etc/enforcer docs/enforcer.sample.yaml docs/enforcer.schema.json
install -D -m 644 -t /etc/systemd/system packaging/enforcer.service
install -d /usr/local/bin /etc/bash_completion.d
ln -sfn "$home/bin/enforcer" /usr/local/bin/enforcer
"$home/bin/enforcer" completion bash >/etc/bash_completion.d/enforcer
if [[ -d /run/systemd/system ]]; then
  systemctl daemon-reload
fi

cat <<END
Installed. Next:
  cp /etc/enforcer/enforcer.sample.yaml /etc/enforcer/enforcer.yaml     and make it yours
  enforcer check && enforcer plan                                       is it right, what would it do?
  systemctl enable --now enforcer                                       enforce it, now and after a boot
END
