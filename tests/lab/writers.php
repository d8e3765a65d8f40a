<?php
/*
 * What Nextcloud's PHP workers do to files and database, as far as a backup can be hurt by it.
 *
 *     php writers.php write ROOT --workers N --seconds S [--gap MS] [--step MS] [--uploads N] [--deaf 1] [occ …]
 *     php writers.php poll ROOT --seconds S
 *     php writers.php judge TREE <ROWS
 *
 * write: each worker serves one request after the other, until S seconds have passed or the file
 * ROOT/../writers.stop is there. A request reads the configuration afresh (config.php and its drop-ins), is
 * refused in maintenance, opens its own connection only after 0 to --gap milliseconds (80), and then changes a
 * pair of a file in DATA/writers/ and a row in oc_writers in several steps, each up to --step milliseconds (20)
 * apart (what follows the options only shows in the list of processes): a row that announces the file, the file in two halves under another name, the rename, the row's size
 * and checksum; or a deletion or a renaming. --uploads workers more write 4 MB in twenty
 * pieces, with pauses five times as long. With --deaf they never look at the switch, as
 * `occ background-job:worker`; they end when ROOT/../writers.pause is there. Prints
 * {"requests","refused","longest_refused_ms","errors"}.
 *
 * poll: how clients see the switch: reads the configuration every 2 ms; prints {"refused_ms","times"}.
 *
 * judge: the rows (id, state, name, size, checksum; as COPY prints them) against the files in TREE/writers:
 * {"pairs","torn","examples"}. A half-done request is a torn pair.
 */

const SECOND = 1_000_000;

/** As Nextcloud merges it, each time anew. */
function configuration(string $root): array
{
    $merged = [];
    $files = glob("$root/config/*.config.php") ?: [];
    sort($files);
    foreach (["$root/config/config.php", ...$files] as $file) {
        $CONFIG = [];
        $handle = @fopen($file, 'r');
        if ($handle === false) {
            continue;
        }
        flock($handle, LOCK_SH);
        @include $file;
        fclose($handle);
        $merged = array_merge($merged, $CONFIG);
    }
    return $merged;
}

function pause(int $most_ms): void
{
    usleep(random_int(0, max(0, $most_ms * 1000)));
}

function connect(array $config)
{
    [$host, $port] = array_pad(explode(':', $config['dbhost'], 2), 2, '5432');
    $words = ['host' => $host, 'port' => $port, 'dbname' => $config['dbname'], 'user' => $config['dbuser'],
        'password' => $config['dbpassword']];
    $text = implode(' ', array_map(fn ($k, $v) => "$k='" . addcslashes($v, "'\\") . "'", array_keys($words), $words));
    return @pg_connect($text, PGSQL_CONNECT_FORCE_NEW);
}

/** One statement, its own transaction; the rows it gives. */
function sql($db, string $text, array $values = []): array
{
    $result = pg_query_params($db, $text, $values);
    return $result === false ? throw new RuntimeException(pg_last_error($db)) : (pg_fetch_all($result) ?: []);
}

/** Puts content in place as Nextcloud does: a part file in pieces, then a rename. */
function store(string $path, string $content, int $pieces, int $step): void
{
    $part = "$path.part";
    $handle = fopen($part, 'w');
    foreach (str_split($content, max(1, intdiv(strlen($content), $pieces) + 1)) as $piece) {
        fwrite($handle, $piece);
        fflush($handle);
        pause($step);
    }
    fclose($handle);
    rename($part, $path);
}

/** A request that changes one pair, in steps. */
function request($db, string $dir, int $worker, int $step, int $size, int $pieces): void
{
    $mine = sql($db, "SELECT id, name FROM oc_writers WHERE worker = $1 AND state = 'whole' ORDER BY random() LIMIT 1", [$worker]);
    $what = $mine === [] ? 0 : random_int(0, 9);
    if ($what <= 6) {
        $content = random_bytes($size);
        if ($what <= 3) {
            $name = "$worker-" . bin2hex(random_bytes(6));
            $id = sql($db, "INSERT INTO oc_writers (worker, state, name) VALUES ($1, 'coming', $2) RETURNING id", [$worker, $name])[0]['id'];
        } else {
            ['id' => $id, 'name' => $name] = $mine[0];
        }
        pause($step);
        store("$dir/$name", $content, $pieces, $step);
        pause($step);
        sql($db, "UPDATE oc_writers SET state = 'whole', size = $2, checksum = $3 WHERE id = $1", [$id, $size, md5($content)]);
    } elseif ($what <= 8) {
        sql($db, "DELETE FROM oc_writers WHERE id = $1", [$mine[0]['id']]);
        pause($step);
        unlink("$dir/{$mine[0]['name']}");
    } else {
        $name = "$worker-" . bin2hex(random_bytes(6));
        rename("$dir/{$mine[0]['name']}", "$dir/$name");
        pause($step);
        sql($db, "UPDATE oc_writers SET name = $2 WHERE id = $1", [$mine[0]['id'], $name]);
    }
}

/** A worker's whole life; what it tells. */
function work(string $root, int $worker, float $end, array $options, bool $uploads): array
{
    $told = ['requests' => 0, 'refused' => 0, 'longest_refused_ms' => 0.0, 'errors' => []];
    $refused_since = null;
    while (microtime(true) < $end && !file_exists(dirname($root) . '/writers.stop')) {
        $config = configuration($root);
        if ($options['deaf']) {
            if (file_exists(dirname($root) . '/writers.pause')) {
                break;
            }
        } elseif ($config['maintenance'] ?? false) {
            $told['refused']++;
            $refused_since ??= microtime(true);
            usleep(5000);
            continue;
        }
        if ($refused_since !== null) {
            $told['longest_refused_ms'] = max($told['longest_refused_ms'], round((microtime(true) - $refused_since) * 1000, 1));
            $refused_since = null;
        }
        pause($options['gap']);
        $db = connect($config);
        if ($db === false) {
            $told['errors'][] = 'no connection';
            usleep(SECOND);
            continue;
        }
        try {
            $size = $uploads ? 4_000_000 : random_int(1, 20_000);
            request($db, "{$config['datadirectory']}/writers", $worker, $options['step'] * ($uploads ? 5 : 1), $size, $uploads ? 20 : 2);
            $told['requests']++;
        } catch (Throwable $error) {
            $told['errors'][] = $error->getMessage();
        }
        pg_close($db);
        pause($options['step']);
    }
    return $told;
}

/** All workers, each a process of its own; one object for them all. */
function write(string $root, array $options): array
{
    $config = configuration($root);
    $dir = "{$config['datadirectory']}/writers";
    $owner = fileowner("$root/config/config.php");
    if (posix_geteuid() === 0) {
        @mkdir($dir, 0750);
        chown($dir, $owner);
        chgrp($dir, filegroup("$root/config/config.php"));
        posix_setgid(filegroup("$root/config/config.php"));
        posix_setuid($owner);
    }
    $db = connect($config) ?: throw new RuntimeException('no connection');
    // Two that begin at once would both make it.
    sql($db, 'SELECT pg_advisory_lock(1)');
    sql($db, "CREATE TABLE IF NOT EXISTS oc_writers (id bigserial PRIMARY KEY, worker int NOT NULL, state text NOT NULL,
        name text NOT NULL, size bigint, checksum text)");
    pg_close($db);
    $end = microtime(true) + $options['seconds'];
    $pipes = [];
    for ($worker = 1; $worker <= $options['workers'] + $options['uploads']; $worker++) {
        [$ours, $theirs] = stream_socket_pair(STREAM_PF_UNIX, STREAM_SOCK_STREAM, 0);
        $pid = pcntl_fork();
        if ($pid === 0) {
            // Pairs belong to one process: two that write into the same pair at once would tear it themselves.
            fwrite($theirs, json_encode(work($root, getmypid(), $end, $options, $worker > $options['workers']),
                JSON_INVALID_UTF8_SUBSTITUTE | JSON_THROW_ON_ERROR));
            exit(0);
        }
        fclose($theirs);
        // The default would give up after a minute.
        stream_set_timeout($ours, 86400);
        $pipes[$pid] = $ours;
    }
    $all = ['requests' => 0, 'refused' => 0, 'longest_refused_ms' => 0.0, 'errors' => []];
    foreach ($pipes as $pid => $pipe) {
        $text = stream_get_contents($pipe);
        pcntl_waitpid($pid, $status);
        $ended = pcntl_wifsignaled($status) ? 'by signal ' . pcntl_wtermsig($status) : 'with ' . pcntl_wexitstatus($status);
        $told = json_decode($text, true) ?? ['requests' => 0, 'refused' => 0, 'longest_refused_ms' => 0, 'errors' => ["a worker ended $ended"]];
        $all['requests'] += $told['requests'];
        $all['refused'] += $told['refused'];
        $all['longest_refused_ms'] = max($all['longest_refused_ms'], $told['longest_refused_ms']);
        $all['errors'] = array_slice([...$all['errors'], ...$told['errors']], 0, 20);
    }
    return $all;
}

function poll(string $root, float $seconds): array
{
    $stop = dirname($root) . '/writers.stop';
    $end = microtime(true) + $seconds;
    [$refused, $times, $since] = [0.0, 0, null];
    while (microtime(true) < $end && !file_exists($stop)) {
        $on = (bool)(configuration($root)['maintenance'] ?? false);
        if ($on && $since === null) {
            $since = microtime(true);
            $times++;
        } elseif (!$on && $since !== null) {
            $refused += microtime(true) - $since;
            $since = null;
        }
        usleep(2000);
    }
    return ['refused_ms' => round(($refused + ($since === null ? 0 : microtime(true) - $since)) * 1000, 1), 'times' => $times];
}

function judge(string $tree): array
{
    $files = [];
    foreach (glob("$tree/writers/*") ?: [] as $file) {
        $files[basename($file)] = $file;
    }
    $pairs = 0;
    $torn = [];
    while (($line = fgets(STDIN)) !== false) {
        [$id, $state, $name, $size, $checksum] = explode("\t", rtrim($line, "\n"));
        $pairs++;
        $file = $files[$name] ?? null;
        unset($files[$name]);
        if ($state !== 'whole') {
            $torn[] = "row $id ($name) was only announced";
        } elseif ($file === null) {
            $torn[] = "row $id has no file $name";
        } elseif (filesize($file) !== (int)$size || md5_file($file) !== $checksum) {
            $torn[] = "row $id is of another content than $name";
        }
    }
    foreach (array_keys($files) as $name) {
        $torn[] = "file $name has no row";
    }
    return ['pairs' => $pairs, 'torn' => count($torn), 'examples' => array_slice($torn, 0, 10)];
}

[, $action, $place] = array_pad($argv, 3, '');
$options = ['workers' => 4, 'seconds' => 60.0, 'gap' => 80, 'step' => 20, 'uploads' => 0, 'deaf' => 0];
for ($at = 3; str_starts_with($argv[$at] ?? '', '--'); $at += 2) {
    $options[substr($argv[$at], 2)] = $argv[$at + 1] + 0;
}
echo json_encode(match ($action) {
    'write' => write($place, $options),
    'poll' => poll($place, $options['seconds']),
    'judge' => judge($place),
}), "\n";
