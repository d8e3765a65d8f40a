<?php
// The command line of the stand-in; see standin.php.
require_once __DIR__ . '/standin.php';

const SENSITIVE = ['dbname', 'dbhost', 'dbuser', 'dbpassword', 'secret', 'passwordsalt', 'instanceid',
    'mail_smtppassword', 'objectstore', 'objectstore_multibucket', 'trusted_domains', 'datadirectory'];

function say(string $line): void
{
    fwrite(STDOUT, "$line\n");
}

function refuse(string $line): never
{
    fwrite(STDERR, "$line\n");
    exit(1);
}

$standin = new Standin(__DIR__);
$args = array_slice($argv, 1);
$command = array_values(array_filter($args, fn ($a) => !str_starts_with($a, '-')))[0] ?? 'list';
$word = match (true) {
    in_array('--on', $args, true) => 'on',
    in_array('--off', $args, true) => 'off',
    $command === 'maintenance:mode' => 'mode',
    str_starts_with($command, 'config:') => 'config',
    str_starts_with($command, 'files_external:') => 'external',
    default => $command,
};

usleep(1000 * ((int)$standin->fault('delay_ms') + (int)$standin->fault("delay_{$word}_ms")));
if ($standin->told('hang', $word)) {
    sleep(3600);
}
if ($standin->told('fail', $word)) {
    say($standin->fault('fail_message') ?? 'An unhandled exception has been thrown:');
    exit(1);
}

// The order is the real one's: first the configuration, then the user, then the server.
$read_only = (bool)($standin->config['config_is_read_only'] ?? false);
if (!is_writable($standin->configFile()) && !$read_only) {
    say('Cannot write into "config" directory!');
    say('This can usually be fixed by giving the web server write access to the config directory.');
    say('');
    say('But, if you prefer to keep config.php file read only, set the option "config_is_read_only" to true in it.');
    exit(0);
}
if (posix_geteuid() !== fileowner($standin->configFile())) {
    say('Console has to be executed with the user that owns the file config/config.php');
    say('Current user id: ' . posix_geteuid());
    say('Owner id of config.php: ' . fileowner($standin->configFile()));
    exit(1);
}
$maintenance = $standin->maintenance();
if ($maintenance) {
    fwrite(STDERR, "Nextcloud is in maintenance mode, no apps are loaded.\nCommands provided by apps are unavailable.\n");
}
if (!is_file(($standin->config['datadirectory'] ?? __DIR__ . '/data') . '/.ncdata')) {
    fwrite(STDERR, "Your data directory is invalid.\nEnsure there is a file called \"# Nextcloud data directory\" in the root of the data directory.\n\n");
    refuse('Environment not properly prepared.');
}

$json = in_array('--output=json', $args, true);
switch ($command) {
    case 'maintenance:mode':
        if ($word === 'mode') {
            say('Maintenance mode is currently ' . ($maintenance ? 'enabled' : 'disabled'));
            break;
        }
        $wanted = $word === 'on';
        $name = $wanted ? 'enabled' : 'disabled';
        if ($wanted === $maintenance) {
            say("Maintenance mode already $name");
            break;
        }
        if ($read_only) {
            refuse('Config is set to be read-only via option "config_is_read_only".');
        }
        if (!$standin->told('lie', $word)) {
            $standin->config['maintenance'] = $wanted;
            $standin->write();
        }
        say("Maintenance mode $name");
        break;
    case 'status':
        if (in_array('-e', $args, true) || in_array('--exit-code', $args, true)) {
            exit($maintenance ? 1 : 0);
        }
        $status = $standin->status($maintenance);
        if ($json) {
            say(json_encode($status));
            break;
        }
        foreach ($status as $key => $value) {
            say("  - $key: " . (is_bool($value) ? var_export($value, true) : $value));
        }
        break;
    case 'config:list':
        $system = $standin->config;
        if (!in_array('--private', $args, true)) {
            foreach (array_intersect(SENSITIVE, array_keys($system)) as $key) {
                $system[$key] = '***REMOVED SENSITIVE VALUE***';
            }
        }
        say(json_encode(['system' => $system], $json ? 0 : JSON_PRETTY_PRINT));
        break;
    case 'config:system:get':
        $key = array_values(array_filter($args, fn ($a) => !str_starts_with($a, '-')))[1] ?? '';
        if (!array_key_exists($key, $standin->config)) {
            exit(1);
        }
        $value = $standin->config[$key];
        say(is_string($value) ? $value : json_encode($value));
        break;
    case 'maintenance:data-fingerprint':
        if ($read_only) {
            refuse('Config is set to be read-only via option "config_is_read_only".');
        }
        $standin->config['data-fingerprint'] = md5((string)time());
        $standin->write();
        say("Updated data-fingerprint to {$standin->config['data-fingerprint']}");
        break;
    case 'notification:generate':
        // Of an app: in maintenance there is none. `--` ends the options; what is there is bytes, as the real one counts them.
        if ($maintenance) {
            refuse('There are no commands defined in the "notification" namespace.');
        }
        $at = array_search('--', $args, true);
        [$user, $short] = $at === false ? ['', ''] : array_slice($args, $at + 1, 2);
        $long = array_values(array_filter($args, fn ($a) => str_starts_with($a, '--long-message=')));
        $long = $long === [] ? '' : substr($long[0], strlen('--long-message='));
        if (!in_array($user, ['admin', 'alice'], true)) {
            say('Unknown user');
            exit(1);
        }
        if ($short === '' || strlen($short) > 255) {
            say('Too long or empty short-message');
            exit(1);
        }
        if (strlen($long) > 4000) {
            say('Too long long-message');
            exit(1);
        }
        file_put_contents(__DIR__ . '/data/notifications', json_encode([$user, $short, $long]) . "\n", FILE_APPEND);
        break;
    case 'files_external:list':
        $list = __DIR__ . '/config/standin-external.json';
        if ($maintenance || !is_file($list)) {
            refuse('There are no commands defined in the "files_external" namespace.');
        }
        say(trim(file_get_contents($list)));
        break;
    default:
        refuse("Command \"$command\" is not defined.");
}
if ($standin->told('hang_after', $word)) {
    sleep(3600);
}
