package audit

// BreakFile has the next write fail.
func BreakFile(l *Log) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.file.Close()
}
