#!/usr/bin/env bash
# Installs what a machine of the lab needs, with the scripts that `make` uses, and starts it.
#
#   vagrant/provision.sh client|gateway|origin
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-} in
  client)
    scripts/setup.sh
    ;;
  gateway)
    scripts/install.sh
    vagrant/configuration.py >/etc/enforcer/enforcer.yaml
    enforcer check
    systemctl enable enforcer
    systemctl restart enforcer
    ;;
  origin)
    scripts/setup.sh
    install -m 644 vagrant/lab-servers.service /etc/systemd/system/
    systemctl daemon-reload
    systemctl enable lab-servers
    systemctl restart lab-servers
    ;;
  *)
    echo "usage: $0 client|gateway|origin" >&2
    exit 2
    ;;
esac
