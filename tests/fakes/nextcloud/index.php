<?php
// The web interface of the stand-in: 503 in maintenance, as WebDAV answers too.
require_once __DIR__ . '/standin.php';

if ((new Standin(__DIR__))->maintenance()) {
    http_response_code(503);
    header('X-Nextcloud-Maintenance-Mode: 1');
    echo "Maintenance mode\n";
} else {
    echo "Nextcloud\n";
}
