# scripts/lib.sh
s#^        lock=$runtime/scripts-.*#        lock=$of#
