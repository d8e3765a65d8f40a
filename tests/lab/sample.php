<?php
/*
 * Makes a Nextcloud instance that looks real, or changes one as its users would: files on disk, and on
 * stdout the SQL that makes the database match (one oc_filecache row for every file and folder).
 *
 *     php sample.php create ROOT FILES USERS SEED MEDIAN-BYTES PGHOST PGUSER PGPASSWORD PGDATABASE
 *     php sample.php change ROOT COUNT SEED
 *
 * Called by tests/lab/sample-instance and tests/lab/sample-change. The same arguments give the same
 * names, contents and rows. MEDIAN-BYTES 0 makes empty files.
 */

const EPOCH = 1_760_000_000;  // what "now" is for everything that create makes
const MIMES = ['httpd' => 1, 'httpd/unix-directory' => 2, 'image' => 3, 'image/jpeg' => 4, 'image/png' => 5,
    'application' => 6, 'application/pdf' => 7, 'application/vnd.openxmlformats-officedocument.wordprocessingml.document' => 8,
    'application/vnd.oasis.opendocument.spreadsheet' => 9, 'text' => 10, 'text/plain' => 11, 'text/markdown' => 12,
    'video' => 13, 'video/mp4' => 14, 'audio' => 15, 'audio/mpeg' => 16, 'application/octet-stream' => 17,
    'application/zip' => 18, 'text/csv' => 19];
const TYPES = ['jpg' => 'image/jpeg', 'png' => 'image/png', 'pdf' => 'application/pdf',
    'docx' => 'application/vnd.openxmlformats-officedocument.wordprocessingml.document',
    'ods' => 'application/vnd.oasis.opendocument.spreadsheet', 'txt' => 'text/plain', 'md' => 'text/markdown',
    'mp4' => 'video/mp4', 'mp3' => 'audio/mpeg', 'zip' => 'application/zip', 'csv' => 'text/csv'];
const WORDS = ['Rechnung', 'invoice', 'Budget', 'Müller & Söhne', 'recipe', 'notes', 'Steuer', 'contract',
    'Überweisung', 'meeting minutes', 'draft', 'final', 'final (2)', 'photo book', 'résumé', 'garden',
    'Küche', 'travel plan', 'Haus', 'insurance', 'school', "Anna's list", '写真', 'Отчёт', 'café', '100% done', 'plan #7',
    'scan', 'receipt', 'letter', 'manual', 'backup', 'ideas', 'songs', 'Weihnachten 🎄', 'logbuch', 'x;y', 'a+b=c'];
const FOLDERS = ['Documents', 'Documents/Taxes', 'Documents/Work', 'Documents/Work/Projekt Ä', 'Notes', 'Photos',
    'InstantUpload/Camera', 'Music', 'Talk', 'Deck', 'Shared with me', 'Scans', 'Documents/School', '.config'];
const PEOPLE = ['alice', 'bob', 'carol', 'dörte', 'erin', 'frank', 'grace', 'heidi'];

function pick(array $from): mixed
{
    return $from[mt_rand(0, count($from) - 1)];
}

/** The folder of a path; '' at the top. */
function parent(string $path): string
{
    return str_contains($path, '/') ? dirname($path) : '';
}

/** The last part of a path (basename() depends on the locale). */
function last(string $path): string
{
    return substr($path, (int)strrpos("/$path", '/'));
}

/** The first 60 characters. */
function cut(string $name): string
{
    preg_match('/^.{0,60}/us', $name, $match);
    return $match[0];
}

function etag(): string
{
    return sprintf('%08x%08x', mt_rand(), mt_rand());
}

/** Bytes that differ from file to file and do not compress: a slice of one random pool, with a stamp. */
function content(int $size): string
{
    static $pool = null, $count = 0;
    $pool ??= implode('', array_map(fn () => pack('V', mt_rand()), range(1, 1 << 18)));
    $text = sprintf("%012d:%08x\n", $count++, mt_rand());
    while (strlen($text) < $size) {
        $text .= substr($pool, mt_rand(0, strlen($pool) - 4096), $size - strlen($text));
    }
    return substr($text, 0, $size);
}

/** Mostly small, some of several megabytes: log-normal, the mean about three times the median. */
function size(int $median): int
{
    $uniform = (mt_rand() + 1) / (mt_getrandmax() + 2);
    $normal = sqrt(-2 * log($uniform)) * cos(2 * M_PI * mt_rand() / mt_getrandmax());
    return min(24_000_000, (int)round($median * exp(1.5 * $normal)));
}

/** One instance being made. */
final class Maker
{
    private array $tables = [];   // table => stream of COPY lines
    private array $columns = [];
    private array $dirs = [];     // absolute path => [storage, path in it, fileid, bytes, mtime]
    private int $fileid = 0;
    public int $files = 0;

    public function __construct(private string $data)
    {
    }

    public function row(string $table, array $values): void
    {
        if (!isset($this->tables[$table])) {
            $this->tables[$table] = fopen('php://temp/maxmemory:16777216', 'w+');
            $this->columns[$table] = '"' . implode('", "', array_keys($values)) . '"';
        }
        foreach ($values as &$value) {
            $value = $value === null ? '\N'
                : (is_bool($value) ? ($value ? 't' : 'f') : addcslashes((string)$value, "\\\t\n\r"));
        }
        fwrite($this->tables[$table], implode("\t", $values) . "\n");
    }

    public function print(): void
    {
        foreach ($this->tables as $table => $stream) {
            echo "COPY oc_$table ({$this->columns[$table]}) FROM stdin;\n";
            rewind($stream);
            fpassthru($stream);
            echo "\\.\n";
        }
    }

    private function cache(int $id, int $storage, string $path, int $parent, string $mime, int $size, int $mtime): void
    {
        $this->row('filecache', ['fileid' => $id, 'storage' => $storage, 'path' => $path, 'path_hash' => md5($path),
            'parent' => $parent, 'name' => $path === '' ? '' : last($path),
            'mimetype' => MIMES[$mime], 'mimepart' => MIMES[strtok($mime, '/')], 'size' => $size, 'mtime' => $mtime,
            'storage_mtime' => $mtime, 'etag' => etag(), 'permissions' => $mime === 'httpd/unix-directory' ? 31 : 27]);
    }

    /** The folder `$path` of a storage whose root is `$root` on disk, made with all above it; its id. */
    public function dir(int $storage, string $root, string $path): int
    {
        $full = rtrim("$root/$path", '/');
        if (!isset($this->dirs[$full])) {
            if ($path !== '') {
                $this->dir($storage, $root, parent($path));
            }
            is_dir($full) || mkdir($full, 0755, true);
            $this->dirs[$full] = [$storage, $path, ++$this->fileid, 0, EPOCH - mt_rand(0, 90_000_000)];
        }
        return $this->dirs[$full][2];
    }

    /** A file with its row; its id. */
    public function file(int $storage, string $root, string $path, string $content, int $mtime): int
    {
        $parent = $this->dir($storage, $root, parent($path));
        $full = "$root/$path";
        file_put_contents($full, $content);
        touch($full, $mtime);
        $extension = strrpos($path, '.') === false ? '' : substr($path, strrpos($path, '.') + 1);
        $id = ++$this->fileid;
        $this->cache($id, $storage, $path, $parent, TYPES[$extension] ?? 'application/octet-stream', strlen($content), $mtime);
        for ($dir = dirname($full); isset($this->dirs[$dir]); $dir = dirname($dir)) {
            $this->dirs[$dir][3] += strlen($content);
            if ($this->dirs[$dir][1] === '') {
                break;
            }
        }
        $this->files++;
        return $id;
    }

    /** Rows of all folders, now that their sizes are known; their times last, as filling them moved those. */
    public function close(): void
    {
        foreach ($this->dirs as $full => [$storage, $path, $id, $bytes, $mtime]) {
            $parent = $path === '' ? -1 : $this->dirs[dirname($full)][2];
            $this->cache($id, $storage, $path, $parent, 'httpd/unix-directory', $bytes, $mtime);
        }
        foreach (array_reverse($this->dirs) as $full => $dir) {
            touch($full, $dir[4]);
        }
    }
}

/** Code, apps and themes: some hundred small files; their content is not PHP that anybody runs. */
function html(string $root, string $data, array $database): void
{
    $put = function (string $path, int $size) use ($root): void {
        is_dir(dirname("$root/$path")) || mkdir(dirname("$root/$path"), 0755, true);
        file_put_contents("$root/$path", str_ends_with($path, '.php') ? "<?php\n// " . bin2hex(content($size >> 1)) . "\n" : content($size));
        touch("$root/$path", EPOCH - 20_000_000 + $size);
    };
    foreach (['AUTHORS', 'COPYING', 'robots.txt', '.htaccess', '.user.ini', 'remote.php', 'public.php', 'ocs/v2.php'] as $name) {
        $put($name, mt_rand(200, 4000));
    }
    foreach (['core/Command', 'core/Controller', 'core/js', 'core/l10n', 'core/templates', 'lib/private/Files',
        'lib/private/DB', 'lib/public', '3rdparty/sabre/dav/lib', 'dist', 'resources/config', 'updater'] as $folder) {
        for ($i = 0; $i < 16; $i++) {
            $put("$folder/" . pick(['Base', 'Manager', 'Cache', 'Node', 'View', 'Util']) . "$i." . pick(['php', 'php', 'js', 'json', 'svg']), size(2500));
        }
    }
    foreach (['files', 'dav', 'settings', 'activity', 'photos', 'files_sharing', 'files_trashbin', 'text'] as $app) {
        $put("apps/$app/appinfo/info.xml", 900);
        for ($i = 0; $i < 12; $i++) {
            $put("apps/$app/" . pick(['lib', 'js', 'l10n', 'img', 'templates']) . "/part$i." . pick(['php', 'js', 'json', 'svg']), size(2000));
        }
    }
    foreach (['calendar', 'contacts', 'notes'] as $app) {
        $put("custom_apps/$app/appinfo/info.xml", 900);
        for ($i = 0; $i < 20; $i++) {
            $put("custom_apps/$app/" . pick(['lib', 'js', 'l10n']) . "/part$i." . pick(['php', 'js', 'json']), size(2000));
        }
    }
    $put('themes/example/core/css/server.css', 3000);
    $put('themes/example/core/img/logo.svg', 5000);
    [$host, $user, $password, $name] = $database;
    $config = ['instanceid' => 'ocsample1234', 'passwordsalt' => etag() . etag(), 'secret' => etag() . etag() . etag(),
        'trusted_domains' => ['localhost', 'cloud.example'], 'datadirectory' => $data, 'dbtype' => 'pgsql',
        'version' => '32.0.1.2', 'overwrite.cli.url' => 'https://cloud.example', 'dbname' => $name, 'dbhost' => $host,
        'dbport' => '', 'dbtableprefix' => 'oc_', 'dbuser' => $user, 'dbpassword' => $password, 'installed' => true,
        'apps_paths' => [['path' => "$root/apps", 'url' => '/apps', 'writable' => false],
            ['path' => "$root/custom_apps", 'url' => '/custom_apps', 'writable' => true]], 'maintenance' => false];
    mkdir("$root/config", 0755);
    file_put_contents("$root/config/config.php", "<?php\n\$CONFIG = " . var_export($config, true) . ";\n");
    chmod("$root/config/config.php", 0640);
}

/** A name that a person would give, new in its folder by its number. */
function file_name(int $n): string
{
    return match (mt_rand(0, 9)) {
        0, 1, 2, 3 => date('\I\M\G_Ymd_His', EPOCH - mt_rand(0, 150_000_000)) . "_$n.jpg",
        4 => date('\S\c\r\e\e\n\s\h\o\t Y-m-d \a\t H.i.s', EPOCH - mt_rand(0, 90_000_000)) . " $n.png",
        5 => pick(WORDS) . " $n.pdf",
        6 => pick(WORDS) . ' ' . pick(WORDS) . " $n." . pick(['docx', 'ods', 'csv']),
        7 => pick(WORDS) . "-$n." . pick(['md', 'txt', 'txt']),
        8 => pick(WORDS) . " $n." . pick(['mp4', 'mp3', 'zip', 'jpg', 'jpg', 'pdf']),
        default => pick(['.', '', '', '']) . pick(WORDS) . "_$n" . pick(['', '.bak', '.jpg', '.pdf']),
    };
}

function users(int $count): array
{
    $users = [];
    for ($i = 0; $i < $count; $i++) {
        $users[] = $i < count(PEOPLE) ? PEOPLE[$i] : "user$i";
    }
    return $users;
}

function create(string $root, int $files, int $users, int $seed, int $median, array $database): void
{
    mt_srand($seed);
    $data = "$root/data";
    is_dir($root) || mkdir($root, 0755);
    mkdir($data, 0750);
    html($root, $data, $database);
    $maker = new Maker($data);
    foreach (MIMES as $name => $id) {
        $maker->row('mimetypes', ['id' => $id, 'mimetype' => $name]);
    }
    $users = users($users);
    $body = fn () => content($median === 0 ? 0 : size($median));
    $time = fn () => EPOCH - mt_rand(100, 150_000_000);

    // What belongs to no user: app data (regenerable or not), group folders.
    // As Nextcloud: an id that does not fit is its md5.
    $id = "local::$data/";
    $maker->row('storages', ['id' => strlen($id) > 64 ? md5($id) : $id, 'numeric_id' => 1, 'available' => 1]);
    $maker->dir(1, $data, '');
    $local = intdiv($files, 5);
    for ($i = 0; $i < $local; $i++) {
        $hash = md5("$seed/$i");
        $place = match (true) {
            $i % 20 === 0 => 'appdata_ocsample1234/avatar/' . pick($users) . "/avatar.$i.png",
            $i % 20 === 1 => "appdata_ocsample1234/theming/images/$i.png",
            $i % 20 === 2 => "appdata_ocsample1234/js/core/merged-$i.js",
            $i % 20 < 6 => '__groupfolders/' . ($i % 2 + 1) . '/' . pick(['Verein', 'Minutes', 'Shared photos']) . '/' . file_name($i),
            default => "appdata_ocsample1234/preview/$hash[0]/$hash[1]/$hash[2]/$hash[3]/$i/256-256.jpg",
        };
        $maker->file(1, $data, $place, $body(), $time());
    }
    foreach ([1 => 'Verein', 2 => 'Familie'] as $id => $name) {
        $maker->row('group_folders', ['folder_id' => $id, 'mount_point' => $name, 'quota' => -3, 'acl' => 0]);
    }

    $left = $files - $local;
    foreach ($users as $n => $user) {
        $storage = $n + 2;
        $home = "$data/$user";
        $maker->row('storages', ['id' => "home::$user", 'numeric_id' => $storage, 'available' => 1]);
        $top = $maker->dir($storage, $home, '');
        foreach (['files', 'cache', 'uploads'] as $folder) {
            $maker->dir($storage, $home, $folder);
        }
        $maker->row('mounts', ['storage_id' => $storage, 'root_id' => $top, 'user_id' => $user, 'mount_point' => "/$user/",
            'mount_provider_class' => 'OC\Files\Mount\LocalHomeMountProvider']);
        $maker->row('users', ['uid' => $user, 'displayname' => ucfirst($user),
            'password' => '3|$argon2id$v=19$m=65536,t=4,p=1$' . etag() . '$' . etag(), 'uid_lower' => strtolower($user)]);
        $maker->row('group_user', ['gid' => $n === 0 ? 'admin' : 'family', 'uid' => $user]);
        $maker->row('accounts', ['uid' => $user, 'data' => json_encode(['displayname' => ['value' => $user, 'scope' => 'v2-federated'],
            'email' => ['value' => "$user@example.org", 'verified' => '0']], JSON_UNESCAPED_UNICODE)]);
        foreach (['displayname' => $user, 'email' => "$user@example.org"] as $name => $value) {
            $maker->row('accounts_data', ['uid' => $user, 'name' => $name, 'value' => $value]);
        }
        foreach (['core' => 'lang', 'files' => 'quota', 'login' => 'lastLogin', 'settings' => 'email', 'firstrunwizard' => 'show'] as $app => $key) {
            $maker->row('preferences', ['userid' => $user, 'appid' => $app, 'configkey' => $key, 'configvalue' => pick(['de', 'en', '0', "line\nbreak\tand \\"])]);
        }
        $maker->row('authtoken', ['uid' => $user, 'login_name' => $user, 'name' => 'Phone', 'token' => etag() . $user, 'type' => 1, 'last_activity' => EPOCH]);
        $maker->row('vcategory', ['id' => $n + 1, 'uid' => $user, 'type' => 'files', 'category' => '_$!<Favorite>!$_']);
        $maker->row('calendars', ['id' => $n + 1, 'principaluri' => "principals/users/$user", 'displayname' => 'Personal', 'uri' => 'personal', 'components' => 'VEVENT,VTODO']);
        for ($i = 0; $i < 20; $i++) {
            $event = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nBEGIN:VEVENT\r\nSUMMARY:" . pick(WORDS) . "\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n";
            $maker->row('calendarobjects', ['calendardata' => '\x' . bin2hex($event), 'uri' => etag() . "$i.ics", 'calendarid' => $n + 1,
                'lastmodified' => EPOCH - $i, 'etag' => etag(), 'size' => strlen($event), 'componenttype' => 'VEVENT', 'uid' => etag()]);
        }

        $mine = intdiv($left, count($users) - $n);
        $left -= $mine;
        // Photos go into folders by month, so that no folder is absurdly full.
        for ($i = 0; $i < $mine; $i++) {
            $at = $time();
            $name = file_name($i);
            $kind = $i % 25;
            if ($kind === 0) {
                $path = "files_trashbin/files/$name.d$at";
                $maker->row('files_trash', ['id' => $name, 'user' => $user, 'timestamp' => $at, 'location' => pick(FOLDERS), 'deleted_by' => $user]);
            } elseif ($kind < 3) {
                $path = 'files_versions/' . pick(FOLDERS) . "/$name.v$at";
            } elseif ($kind === 3 && $i % 100 === 3) {
                $path = "uploads/web-file-upload-$i/" . sprintf('%05d', $i % 7 + 1);
            } elseif (str_starts_with($name, 'IMG_')) {
                $path = 'files/Photos/' . date('Y/m', $at) . "/$name";
            } else {
                $path = 'files/' . pick(FOLDERS) . ($i % 3 ? '' : '/' . pick(WORDS)) . "/$name";
            }
            $id = $maker->file($storage, $home, $path, $body(), $at);
            if ($kind % 5 === 4) {
                $maker->row('activity', ['timestamp' => $at, 'priority' => 30, 'type' => 'file_created', 'user' => $user, 'affecteduser' => $user,
                    'app' => 'files', 'subject' => 'created_self', 'subjectparams' => json_encode([[$id => "/$name"]], JSON_UNESCAPED_UNICODE),
                    'message' => '', 'messageparams' => '[]', 'file' => "/$name", 'link' => "https://cloud.example/apps/files/?dir=/$i",
                    'object_type' => 'files', 'object_id' => $id]);
                $maker->row('filecache_extended', ['fileid' => $id, 'metadata_etag' => etag(), 'creation_time' => 0, 'upload_time' => $at]);
            }
            if ($i % 97 === 5) {
                $maker->row('share', ['share_type' => $i % 2 ? 3 : 0, 'share_with' => $i % 2 ? null : pick($users), 'uid_owner' => $user, 'uid_initiator' => $user,
                    'item_type' => 'file', 'item_source' => $id, 'file_source' => $id, 'file_target' => "/$name", 'permissions' => 17, 'stime' => $at,
                    'token' => $i % 2 ? substr(etag(), 0, 15) : null, 'attributes' => null, 'hide_download' => 0]);
                $maker->row('vcategory_to_object', ['objid' => $id, 'categoryid' => $n + 1, 'type' => 'files']);
                $maker->row('comments', ['actor_type' => 'users', 'actor_id' => $user, 'message' => pick(WORDS) . "?\nsee \\\"there\\\"", 'verb' => 'comment',
                    'creation_timestamp' => date('Y-m-d H:i:s', $at), 'object_type' => 'files', 'object_id' => $id]);
                $maker->row('properties', ['userid' => $user, 'propertypath' => "files/$user/$i", 'propertyname' => '{http://owncloud.org/ns}note', 'propertyvalue' => pick(WORDS)]);
            }
        }
        mkdir("$home/files/Empty folder", 0755);
        $maker->dir($storage, $home, 'files/Empty folder');
    }
    foreach (['admin' => 'admin', 'family' => 'Family'] as $gid => $name) {
        $maker->row('groups', ['gid' => $gid, 'displayname' => $name]);
    }
    foreach (['core' => ['vendor', 'nextcloud'], 'files' => ['installed_version', '2.4.0'], 'dav' => ['installed_version', '1.34.0'],
        'activity' => ['enabled', 'yes'], 'theming' => ['name', 'Home cloud'], 'backgroundjob' => ['lastjob', '12']] as $app => [$key, $value]) {
        $maker->row('appconfig', ['appid' => $app, 'configkey' => $key, 'configvalue' => $value, 'type' => 4, 'lazy' => 0]);
    }
    foreach (['OCA\Files\BackgroundJob\ScanFiles', 'OCA\DAV\BackgroundJob\CleanupInvitationTokenJob', 'OC\Core\BackgroundJobs\GenerateMetadataJob',
        'OCA\Files_Trashbin\BackgroundJob\ExpireTrash', 'OCA\Activity\BackgroundJob\ExpireActivities'] as $class) {
        $maker->row('jobs', ['class' => $class, 'argument' => 'null', 'last_run' => EPOCH, 'last_checked' => EPOCH, 'argument_hash' => md5('null')]);
    }
    foreach (['13000Date20170718121200', '32000Date20250620081925'] as $version) {
        $maker->row('migrations', ['app' => 'core', 'version' => $version]);
    }

    // What lies in the data directory without a row.
    file_put_contents("$data/.ncdata", "# Nextcloud data directory\n# Do not change this file");
    file_put_contents("$data/.htaccess", "Require all denied\n");
    file_put_contents("$data/index.html", '');
    file_put_contents("$data/nextcloud.log", str_repeat("{\"reqId\":\"x\",\"level\":2,\"message\":\"sample\"}\n", 200));
    mkdir("$data/updater-ocsample1234", 0755);
    foreach (['.ncdata', '.htaccess', 'index.html', 'nextcloud.log', 'updater-ocsample1234'] as $name) {
        touch("$data/$name", EPOCH);
    }
    $maker->close();
    $maker->print();
    fwrite(STDERR, "sample: {$maker->files} files of " . count($users) . " users\n");
}

/** Text as an SQL literal. */
function quote(string $text): string
{
    return "'" . str_replace("'", "''", $text) . "'";
}

/** The users' changes of one day: edits, new files, deletions, renames, one renamed folder, modes. */
final class Day
{
    private array $grown = [];   // user => folder => bytes more
    public array $done = ['edited' => 0, 'added' => 0, 'trashed' => 0, 'removed' => 0, 'renamed' => 0, 'chmod' => 0, 'folders_renamed' => 0];
    private int $owner;
    private int $group;

    public function __construct(private string $data)
    {
        $this->owner = fileowner($data);
        $this->group = filegroup($data);
        echo "BEGIN;\n";
    }

    private function where(string $user, string $path): string
    {
        return 'storage = (SELECT numeric_id FROM oc_storages WHERE id = ' . quote("home::$user") . ') AND path_hash = ' . quote(md5($path));
    }

    private function grow(string $user, string $path, int $bytes): void
    {
        while ($path !== '') {
            $path = parent($path);
            $this->grown[$user][$path] = ($this->grown[$user][$path] ?? 0) + $bytes;
        }
    }

    private function write(string $user, string $path, string $content): int
    {
        $full = "{$this->data}/$user/$path";
        file_put_contents($full, $content);
        chown($full, $this->owner) && chgrp($full, $this->group);
        clearstatcache();
        return filemtime($full);
    }

    public function edit(string $user, string $path): void
    {
        $before = filesize("{$this->data}/$user/$path");
        // A third of the edits keep the size, as those of images' metadata and of fixed-size records do.
        $size = mt_rand(0, 2) === 0 ? $before : max(20, size(6000));
        $mtime = $this->write($user, $path, content($size));
        $this->grow($user, $path, $size - $before);
        echo "UPDATE oc_filecache SET size = $size, mtime = $mtime, storage_mtime = $mtime, etag = '" . etag() . "' WHERE {$this->where($user, $path)};\n";
        $this->done['edited']++;
    }

    public function add(string $user, string $folder, string $name): void
    {
        $path = "$folder/$name";
        $content = content(max(20, size(6000)));
        $mtime = $this->write($user, $path, $content);
        $this->grow($user, $path, strlen($content));
        $extension = pathinfo($name, PATHINFO_EXTENSION);
        $mime = TYPES[$extension] ?? 'application/octet-stream';
        echo 'INSERT INTO oc_filecache (storage, path, path_hash, parent, name, mimetype, mimepart, size, mtime, storage_mtime, etag, permissions) SELECT storage, '
            . quote($path) . ', ' . quote(md5($path)) . ', fileid, ' . quote($name) . ', ' . MIMES[$mime] . ', ' . MIMES[strtok($mime, '/')] . ', '
            . strlen($content) . ", $mtime, $mtime, '" . etag() . "', 27 FROM oc_filecache WHERE {$this->where($user, $folder)};\n";
        $this->done['added']++;
    }

    private function move(string $user, string $from, string $to): void
    {
        $bytes = filesize("{$this->data}/$user/$from");
        rename("{$this->data}/$user/$from", "{$this->data}/$user/$to");
        $this->grow($user, $from, -$bytes);
        $this->grow($user, $to, $bytes);
        echo 'UPDATE oc_filecache SET path = ' . quote($to) . ', path_hash = ' . quote(md5($to)) . ', name = ' . quote(last($to))
            . ", parent = (SELECT fileid FROM oc_filecache WHERE {$this->where($user, dirname($to))}) WHERE {$this->where($user, $from)};\n";
    }

    public function rename(string $user, string $path): void
    {
        $name = last($path);
        $this->move($user, $path, dirname($path) . '/renamed ' . cut($name) . mt_rand(0, 999999));
        $this->done['renamed']++;
    }

    /** Into the trash bin, as Nextcloud deletes; every second one for good, where there is no bin yet all. */
    public function delete(string $user, string $path): void
    {
        $full = "{$this->data}/$user/$path";
        if (mt_rand(0, 1) === 0 && is_dir("{$this->data}/$user/files_trashbin/files")) {
            $now = time();
            $name = last($path);
            $this->move($user, $path, "files_trashbin/files/$name.d$now");
            echo 'INSERT INTO oc_files_trash (id, "user", timestamp, location) VALUES (' . quote($name) . ', ' . quote($user) . ", '$now', " . quote(dirname($path)) . ");\n";
            $this->done['trashed']++;
            return;
        }
        $this->grow($user, $path, -filesize($full));
        unlink($full);
        echo "DELETE FROM oc_filecache WHERE {$this->where($user, $path)};\n";
        $this->done['removed']++;
    }

    public function chmod(string $user, string $path): void
    {
        chmod("{$this->data}/$user/$path", (fileperms("{$this->data}/$user/$path") & 0777) === 0640 ? 0600 : 0640);
        $this->done['chmod']++;
    }

    /** The folders' new sizes, by the names they had during the day. */
    public function sizes(): void
    {
        foreach ($this->grown as $user => $folders) {
            foreach (array_filter($folders) as $path => $bytes) {
                echo "UPDATE oc_filecache SET size = size + $bytes, etag = '" . etag() . "' WHERE {$this->where($user, (string)$path)};\n";
            }
        }
    }

    public function rename_folder(string $user, string $path): void
    {
        $to = "$path, sorted " . mt_rand(0, 999999);
        rename("{$this->data}/$user/$path", "{$this->data}/$user/$to");
        $old = quote($path);
        $new = quote($to) . "::text || substr(path, length($old) + 1)";
        echo "UPDATE oc_filecache SET path = $new, path_hash = md5($new), name = CASE WHEN path = $old THEN " . quote(last($to)) . " ELSE name END "
            . 'WHERE storage = (SELECT numeric_id FROM oc_storages WHERE id = ' . quote("home::$user") . ") AND (path = $old OR left(path, length($old) + 1) = $old || '/');\n";
        $this->done['folders_renamed']++;
    }
}

function change(string $root, int $count, int $seed): void
{
    mt_srand($seed);
    $data = "$root/data";
    $files = $folders = [];
    foreach (scandir($data) as $user) {
        if ($user[0] === '.' || !is_dir("$data/$user/files")) {
            continue;
        }
        $walk = new RecursiveIteratorIterator(new RecursiveDirectoryIterator("$data/$user/files", FilesystemIterator::SKIP_DOTS), RecursiveIteratorIterator::SELF_FIRST);
        foreach ($walk as $path => $entry) {
            $relative = substr($path, strlen("$data/$user/"));
            if ($entry->isDir()) {
                $folders[] = [$user, $relative];
            } else {
                $files[] = [$user, $relative];
            }
        }
    }
    if (count($files) < $count) {
        fwrite(STDERR, "sample: $data has only " . count($files) . " users' files, fewer than the $count to change\n");
        exit(1);
    }
    sort($files);
    sort($folders);
    // $count of the files, in an order drawn from the seed (shuffle() would sort a million for 150).
    $chosen = [];
    while (count($chosen) < $count) {
        $chosen[mt_rand(0, count($files) - 1)] = true;
    }
    $day = new Day($data);
    foreach (array_keys($chosen) as $n => $index) {
        [$user, $path] = $files[$index];
        $what = $n % 20;
        match (true) {
            $what < 9 => $day->edit($user, $path),
            $what < 14 => (function () use ($day, $folders, $n) {
                [$user, $folder] = pick($folders);
                $day->add($user, $folder, 'new ' . mt_rand(0, 99999999) . file_name($n));
            })(),
            $what < 17 => $day->delete($user, $path),
            $what < 19 => $day->rename($user, $path),
            default => $day->chmod($user, $path),
        };
    }
    $day->sizes();
    if ($count >= 20) {
        // A small one: a folder of the users' own making.
        $leaves = array_values(array_filter($folders, fn ($f) => substr_count($f[1], '/') === 2));
        $day->rename_folder(...pick($leaves ?: $folders));
    }
    file_put_contents("$data/nextcloud.log", str_repeat("{\"reqId\":\"y\",\"level\":1,\"message\":\"another day\"}\n", 20), FILE_APPEND);
    echo "COMMIT;\n";
    fwrite(STDERR, 'sample: ' . json_encode($day->done) . "\n");
}

error_reporting(E_ALL);
ini_set('memory_limit', '2G');
set_error_handler(function (int $level, string $message, string $file, int $line): never {
    fwrite(STDERR, "sample: $message (line $line)\n");
    exit(1);
});
umask(0022);
date_default_timezone_set('UTC');
match ("$argv[1]:$argc") {
    'create:11' => create($argv[2], (int)$argv[3], (int)$argv[4], (int)$argv[5], (int)$argv[6], array_slice($argv, 7)),
    'change:5' => change($argv[2], (int)$argv[3], (int)$argv[4]),
    default => exit(2),
};
