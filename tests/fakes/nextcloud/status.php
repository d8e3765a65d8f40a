<?php
// What clients ask first; see standin.php. Always HTTP 200, also in maintenance.
require_once __DIR__ . '/standin.php';

$standin = new Standin(__DIR__);
$maintenance = $standin->maintenance();
$delay = (float)$standin->fault('url_delay_ms') / 1000;
$stuck = (bool)$standin->fault('url_stuck');
if ($delay > 0 || $stuck) {
    // The answer given before the last change, shown again until the change is old enough.
    $cache = __DIR__ . '/standin.cache';
    clearstatcache();
    $files = [__DIR__ . '/config', ...(glob(__DIR__ . '/config/*.php') ?: [])];
    $changed = max(array_map(fn ($f) => (float)trim(shell_exec('stat -c %.Y ' . escapeshellarg($f))), $files));
    if (is_file($cache) && ($stuck || microtime(true) - $changed < $delay)) {
        $maintenance = file_get_contents($cache) === '1';
    } else {
        file_put_contents($cache, $maintenance ? '1' : '0');
    }
}
header('Content-Type: application/json');
echo json_encode($standin->status($maintenance));
