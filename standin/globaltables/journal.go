package globaltables

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// version says which write an item's content is from. The zero value is before all.
type version struct {
	At      int64  `json:"at"` // microseconds since 1970, by the clock of the region
	Region  string `json:"region"`
	Deleted bool   `json:"deleted,omitempty"` // the write removed the item, and is known to have
}

// later says whether a write wins over another.
func (v version) later(than version) bool {
	return cmp.Or(cmp.Compare(v.At, than.At), cmp.Compare(v.Region, than.Region)) > 0
}

// journal remembers versions and replicas, in memory and in a file to which each change
// is appended, so that it survives a process that is killed.
type journal struct {
	file     *os.File
	versions map[ref]version
	replicas map[string][]string // of tables
	clock    int64               // the highest time of all versions seen
}

// entry is a line of the journal.
type entry struct {
	Table    string   `json:"table"`
	Key      string   `json:"key,omitempty"`
	Version  *version `json:"version,omitempty"`
	Replicas []string `json:"replicas,omitempty"`
}

func openJournal(dir string) (*journal, error) {
	file, err := os.OpenFile(filepath.Join(dir, "journal"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	j := &journal{file: file, versions: map[ref]version{}, replicas: map[string][]string{}}
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			continue // a line that broke off was of a change that nobody was told of
		}
		if e.Version == nil {
			j.replicas[e.Table] = e.Replicas
			continue
		}
		j.versions[ref{e.Table, e.Key}] = *e.Version
		j.clock = max(j.clock, e.Version.At)
	}
	if err := lines.Err(); err != nil {
		return nil, errors.Join(fmt.Errorf("journal: %w", err), file.Close())
	}
	_, err = file.WriteString("\n") // ends a line that broke off
	return j, err
}

func (j *journal) close() error { return j.file.Close() }

// tick gives a time after all that have been seen.
func (j *journal) tick() int64 {
	j.clock = max(j.clock+1, time.Now().UnixMicro())
	return j.clock
}

func (j *journal) of(item ref) version { return j.versions[item] }

func (j *journal) set(item ref, v version) error {
	j.versions[item], j.clock = v, max(j.clock, v.At)
	return j.append(entry{Table: item.table, Key: item.key, Version: &v})
}

func (j *journal) setReplicas(table string, regions []string) error {
	j.replicas[table] = regions
	return j.append(entry{Table: table, Replicas: regions})
}

func (j *journal) append(e entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = j.file.Write(append(line, '\n'))
	return err
}
