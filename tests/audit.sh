#!/usr/bin/env bash
# Known vulnerabilities of the pinned dependencies, by the open database at api.osv.dev; said, and left out, where that cannot be reached.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! timeout 10 .venv/bin/python -c 'import socket; socket.create_connection(("api.osv.dev", 443), 5)' 2> /dev/null; then
    echo "The dependencies were not audited: api.osv.dev cannot be reached."
    exit 0
fi
.venv/bin/pip-audit --vulnerability-service osv --disable-pip --no-deps --progress-spinner off -r constraints.txt
