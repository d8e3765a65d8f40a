<?php
/*
 * Runs a command and measures it; one JSON object on stdout. The command's own output goes to stderr.
 *
 *     php measure.php [--memory] FOLDER COMMAND…
 *
 * seconds: until it ended. seconds_durable: until FOLDER's file system was synced too. written_bytes: how
 * much more of that file system is in use. With --memory, every 20 ms the resident memory of the command
 * and of all it started (also what went to the background) is added up: peak_rss_bytes is the largest
 * sum, peak_by_program the largest sum of each program's processes. That costs time, so take the
 * seconds from a run without it.
 */

/** pid => [parent, program, resident bytes] of all processes. */
function processes(): array
{
    $found = [];
    foreach (glob('/proc/[0-9]*', GLOB_NOSORT) as $dir) {
        $text = @file_get_contents("$dir/status");
        if ($text !== false && preg_match('/^Name:\s*(.*)$.*^PPid:\s*(\d+)$.*^VmRSS:\s*(\d+)/ms', $text, $m)) {
            $found[(int)substr($dir, 6)] = [(int)$m[2], strtok($m[1], "\n"), 1024 * (int)$m[3]];
        }
    }
    return $found;
}

function used(string $folder): int
{
    return (int)(disk_total_space($folder) - disk_free_space($folder));
}

$arguments = array_slice($argv, 1);
$memory = ($arguments[0] ?? '') === '--memory';
$memory && array_shift($arguments);
$folder = array_shift($arguments);
$before = used($folder);
$started = hrtime(true);
$process = proc_open($arguments, [['file', '/dev/null', 'r'], STDERR, STDERR], $pipes);
$pid = proc_get_status($process)['pid'];
$peak = 0;
$programs = [];
if ($memory) {
    // Once seen, a process stays ours, also when its parent has gone.
    $ours = [$pid => true];
    do {
        $all = processes();
        do {
            $new = array_filter($all, fn ($p, $id) => isset($ours[$p[0]]) && !isset($ours[$id]), ARRAY_FILTER_USE_BOTH);
            $ours += array_map(fn () => true, $new);
        } while ($new !== []);
        $now = [];
        foreach (array_intersect_key($all, $ours) as [, $name, $bytes]) {
            if ($name === 'php') {
                continue;  // ourselves, forked, just before the command begins
            }
            $now[$name] = ($now[$name] ?? 0) + $bytes;
        }
        $peak = max($peak, array_sum($now));
        foreach ($now as $name => $bytes) {
            $programs[$name] = max($programs[$name] ?? 0, $bytes);
        }
        usleep(20_000);
        $status = proc_get_status($process);
    } while ($status['running']);
    $code = $status['exitcode'];
} else {
    $code = proc_close($process);
}
$seconds = (hrtime(true) - $started) / 1e9;
exec('sync -f ' . escapeshellarg($folder));
$durable = (hrtime(true) - $started) / 1e9;
echo json_encode(['seconds' => round($seconds, 3), 'seconds_durable' => round($durable, 3),
    'written_bytes' => used($folder) - $before, 'exit_code' => $code,
    'peak_rss_bytes' => $memory ? $peak : null, 'peak_by_program' => $memory ? (object)$programs : null]), "\n";
exit($code);
