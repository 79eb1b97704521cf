package parent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/parent/wash"
)

// note is a file of this machine's that has the last wash that ended, or is under way. A
// start of the parent goes by it: what is half washed is this machine, and a store that is
// away must neither hide it nor keep a sound instance from serving.
type note struct {
	Wash string     `json:"wash"` // its id; empty: nothing was noted
	Row  state.Wash `json:"row"`
}

// noteAt reads the note; where there is no file, it is empty.
func noteAt(path string) (n note, err error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return note{}, nil
	}
	if err == nil {
		err = json.Unmarshal(content, &n)
	}
	if err == nil && n.Wash == "" {
		err = errors.New("it names no wash")
	}
	if err == nil {
		err = n.Row.Validate()
	}
	if err != nil {
		return note{}, fmt.Errorf("note of the last wash: %w", err)
	}
	return n, nil
}

// keep has the note at path, whole or not at all, and on the disk.
func (n note) keep(path string) (err error) {
	content, err := json.Marshal(n)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("note of the wash: %w", err)
		}
	}()
	fresh, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = fresh.Write(content)
	err = errors.Join(err, fresh.Sync(), fresh.Close())
	if err == nil {
		err = os.Rename(fresh.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(fresh.Name()))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (w *washer) isNoted(id string) bool {
	w.noting.Lock()
	defer w.noting.Unlock()
	return w.noted.Wash == id
}

// note notes a wash, unless a later one is noted. What a start has found is earlier than
// all that it begins, whatever the clock said then.
func (w *washer) note(a wash.Action) error {
	w.noting.Lock()
	defer w.noting.Unlock()
	found, has := a.Wash == w.found.Wash, w.noted.Wash == w.found.Wash
	if found && !has || found == has && a.Row.StartedAt.Before(w.noted.Row.StartedAt) {
		return nil
	}
	n := note{Wash: a.Wash, Row: a.Row}
	if err := n.keep(w.config.Note); err != nil {
		return err
	}
	w.noted = n
	return nil
}
