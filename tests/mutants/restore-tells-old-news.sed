# scripts/restore
s/\["restore-unfinished"\]/[]/
