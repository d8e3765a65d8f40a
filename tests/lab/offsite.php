<?php
/*
 * The instance that tests/lab/measure-offsite copies elsewhere, and what changes in it. Prints the bytes of new
 * contents.
 *
 *     php offsite.php create DIR FILES CHANGES
 *     php offsite.php CHANGE DIR FILES ROUND      another ROUND, other files
 *
 * DIR/data: twenty files to a folder, most of 0.2 to 3 KB; an album; a video, if big-file is among the CHANGES.
 * DIR/database: stands for a dump in pg_dump's directory format, compressed, so that a table in which a row changed is
 * another file. With fewer than 20,000 FILES, changes are smaller in proportion.
 */

/** Bytes of new contents so far. */
$payload = 0;

function count_of(int $wanted, int $files): int
{
    return max(2, (int)round($wanted * min(1, $files / 20_000)));
}

function write(string $path, string $content): void
{
    global $payload;
    is_dir(dirname($path)) || mkdir(dirname($path), 0755, true);
    file_put_contents($path, $content);
    $payload += strlen($content);
}

/** As people write: compresses to less than half. */
function text(int $size): string
{
    static $words = null;
    $words ??= array_map(fn () => substr(strtr(base64_encode(random_bytes(9)), '+/', 'ae'), 0, mt_rand(2, 10)), range(1, 2000));
    for ($text = ''; strlen($text) < $size;) {
        // Few words are most of what is written.
        $text .= $words[(int)(2000 ** (mt_rand() / mt_getrandmax())) - 1] . (mt_rand(0, 9) ? ' ' : "\n");
    }
    return substr($text, 0, $size);
}

/** How many files lie in the folder that is renamed. */
function archived(int $files): int
{
    return min(10_000, intdiv($files, 5));
}

/** The n-th of the files that nothing moves. */
function path(string $dir, int $n): string
{
    return sprintf('%s/data/alice/files/%d/Folder %04d/IMG_%07d.jpg', $dir, 2000 + intdiv($n, 4000), intdiv($n, 20), $n);
}

/** 150 files of 10,000 bytes, each in another folder: two of three were there before. */
function scattered(string $dir, int $files, int $round, callable $content): void
{
    $all = intdiv($files * 8, 10);
    $count = count_of(150, $files);
    for ($i = 0; $i < $count; $i++) {
        $path = path($dir, ($i * intdiv($all, $count) + $round * 7) % $all);
        write($i % 3 === 2 ? dirname($path) . "/new $round.$i.jpg" : $path, $content(10_000));
    }
}

/** Some of the tables, the largest among them, and the table of contents. */
function dump(string $dir, bool $all): void
{
    for ($table = 0; $table < 120; $table++) {
        if ($all || $table % 40 === 0) {
            write(sprintf('%s/database/%d.dat.gz', $dir, 3000 + $table), random_bytes([1_050_000, 200_000, 90_000][$table] ?? 20_000));
        }
    }
    write("$dir/database/toc.dat", random_bytes(20_000) . text(320_000));
}

function create(string $dir, int $files, string $changes): void
{
    for ($n = intdiv($files * 8, 10); $n-- > 0;) {
        write(path($dir, $n), random_bytes(mt_rand(200, 3000)));
    }
    for ($n = archived($files); $n-- > 0;) {
        write(sprintf('%s/data/bob/files/Archive/%03d/scan %05d.pdf', $dir, intdiv($n, 20), $n), random_bytes(mt_rand(200, 3000)));
    }
    for ($n = count_of(500, $files); $n-- > 0;) {
        write(sprintf('%s/data/carol/files/Album/IMG_%04d.jpg', $dir, $n), random_bytes(100_000));
    }
    mkdir("$dir/data/carol/files_trashbin/files", 0755, true);
    for ($n = str_contains($changes, 'big-file') ? count_of(500, $files) : 0; $n-- > 0;) {
        file_put_contents("$dir/data/carol/files/video.mp4", random_bytes(1_000_000), FILE_APPEND);
    }
    touch("$dir/.ncdata");
    dump($dir, true);
}

function change(string $what, string $dir, int $files, int $round): void
{
    global $payload;
    $carol = "$dir/data/carol";
    switch ($what) {
        case 'scattered-random':
            scattered($dir, $files, $round, random_bytes(...));
            break;
        case 'scattered-text':
            scattered($dir, $files, $round, text(...));
            break;
        case 'dump':
            dump($dir, false);
            break;
        case 'photos':
            for ($n = count_of(2000, $files); $n-- > 0;) {
                write(sprintf('%s/files/Photos/%d/IMG_%04d.jpg', $carol, $round, $n), random_bytes(100_000));
            }
            break;
        case 'rename':
            rename("$dir/data/bob/files/Archive", "$dir/data/bob/files/Sorted");
            break;
        case 'trash':
            foreach (glob("$carol/files/Album/*") as $path) {
                rename($path, "$carol/files_trashbin/files/" . basename($path) . '.d1760000000');
            }
            break;
        case 'big-file':
            $file = fopen("$carol/files/video.mp4", 'r+');
            $piece = min(1_000_000, intdiv(fstat($file)['size'], 3));
            fseek($file, $piece + 12_345);
            $payload += fwrite($file, random_bytes($piece));
            fclose($file);
            break;
        default:
            exit(2);
    }
}

error_reporting(E_ALL);
set_error_handler(function (int $level, string $message, string $file, int $line): never {
    fwrite(STDERR, "offsite.php: $message (line $line)\n");
    exit(1);
});
umask(0022);
if ($argv[1] === 'create') {
    create($argv[2], (int)$argv[3], $argv[4]);
} else {
    change($argv[1], $argv[2], (int)$argv[3], (int)$argv[4]);
}
echo $payload, "\n";
