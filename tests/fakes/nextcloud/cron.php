<?php
// Background jobs of the stand-in: in maintenance it exits 0 and does nothing.
require_once __DIR__ . '/standin.php';

$standin = new Standin(__DIR__);
if (!$standin->maintenance()) {
    $log = ($standin->config['datadirectory'] ?? __DIR__ . '/data') . '/nextcloud.log';
    $entry = ['time' => gmdate('c'), 'app' => 'cron', 'message' => 'background jobs done'];
    file_put_contents($log, json_encode($entry) . "\n", FILE_APPEND);
}
