<?php
/*
 * A stand-in for Nextcloud 32: what a backup sees of it, without apps and without a database.
 *
 * Copy this folder's *.php files and `occ` into an instance root that has
 *     config/config.php      $CONFIG as Nextcloud writes it, mode 0640, owned by the web user
 *     config/*.config.php    drop-ins, merged over it in name order
 *     DATADIRECTORY/.ncdata
 * and use it as the real one:
 *     php ROOT/occ maintenance:mode [--on|--off]       php ROOT/occ status [-e] [--output=json]
 *     php ROOT/occ config:list system [--private] [--output=json]
 *     php ROOT/occ config:system:get KEY               php ROOT/occ files_external:list --output=json
 *     php -S 127.0.0.1:PORT -t ROOT                    status.php, index.php, cron.php
 * Answers, exit codes and traps are those measured on a real instance: `occ` exits 0 with
 * `Cannot write into "config" directory!` for the wrong user or an unwritable config.php; run as root
 * it drops to config.php's owner, while console.php refuses; config.php is rewritten in place.
 *
 * Misbehaviour is ordered in config/standin.ini (no file: none). WORDS is a comma-separated list of
 * on, off, mode, status, config, external, or all:
 *     delay_ms = N           every occ call takes N ms longer (delay_on_ms, delay_off_ms: only these)
 *     hang = WORDS           never answers (well: an hour)
 *     hang_after = WORDS     does its work, says so, and never ends
 *     lie = WORDS            on, off: says it is done, changes nothing, exits 0
 *     fail = WORDS           prints fail_message, exits 1 (a database that is down, …)
 *     url_delay_ms = N       status.php shows the old answer for N ms after a change (a stale opcache)
 *     url_stuck = true       status.php shows the answer it gave first, for ever
 * config/standin-external.json is what files_external:list prints; without it the app is not enabled.
 */

/** One instance: where it is and what its configuration says now. */
final class Standin
{
    public array $config = [];
    private array $faults = [];

    public function __construct(public readonly string $root)
    {
        $ini = "$root/config/standin.ini";
        if (is_readable($ini)) {
            // Raw: `on` and `off` are words here, not truth values.
            $this->faults = parse_ini_file($ini, false, INI_SCANNER_RAW) ?: [];
        }
        $this->read();
    }

    public function configFile(): string
    {
        return "{$this->root}/config/config.php";
    }

    /** config.php first, then every drop-in in name order: the later one wins. */
    private function read(): void
    {
        $files = glob("{$this->root}/config/*.config.php") ?: [];
        sort($files);
        array_unshift($files, $this->configFile());
        foreach ($files as $file) {
            if (function_exists('opcache_invalidate')) {
                @opcache_invalidate($file, false);
            }
            $handle = @fopen($file, 'r');
            if ($handle === false) {
                continue;
            }
            flock($handle, LOCK_SH);
            $CONFIG = [];
            include $file;
            fclose($handle);
            $this->config = array_merge($this->config, $CONFIG);
        }
    }

    /** As the real one: the merged values, in place, under flock. */
    public function write(): void
    {
        $handle = fopen($this->configFile(), 'r+');
        chmod($this->configFile(), 0640);
        flock($handle, LOCK_EX);
        ftruncate($handle, 0);
        fwrite($handle, "<?php\n\$CONFIG = " . var_export($this->config, true) . ";\n");
        fflush($handle);
        fclose($handle);
    }

    public function maintenance(): bool
    {
        return (bool)($this->config['maintenance'] ?? false);
    }

    public function fault(string $name): mixed
    {
        return $this->faults[$name] ?? null;
    }

    public function told(string $name, string $word): bool
    {
        $words = explode(',', str_replace(' ', '', (string)$this->fault($name)));
        return in_array($word, $words, true) || in_array('all', $words, true);
    }

    public function version(): array
    {
        require "{$this->root}/version.php";
        return [implode('.', $OC_Version), $OC_VersionString];
    }

    public function status(bool $maintenance): array
    {
        [$version, $string] = $this->version();
        return ['installed' => (bool)($this->config['installed'] ?? true), 'version' => $version,
            'versionstring' => $string, 'edition' => '', 'maintenance' => $maintenance,
            'needsDbUpgrade' => false, 'productname' => 'Nextcloud', 'extendedSupport' => false];
    }
}
