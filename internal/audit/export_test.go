package audit

import "io"

// HeadOfFile is headOfFile.
func HeadOfFile(file io.ReaderAt, size int64) (Head, int64, error) { return headOfFile(file, size) }

// BreakFile has the next write fail.
func BreakFile(l *Log) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.file.Close()
}
