package image_test

import (
	"io/fs"
	"strings"
)

// sources is a checkout without what is fetched, built or Git's own.
type sources struct{ fs.FS }

func (s sources) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(s.FS, name)
	var kept []fs.DirEntry
	for _, entry := range entries {
		if name == "." && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "bin") || !entry.IsDir() && !entry.Type().IsRegular() {
			continue
		}
		kept = append(kept, entry)
	}
	return kept, err
}
