# scripts/report.sh
s/"regular file:\$(id -u):1:"\*)/"regular file:"*)/
