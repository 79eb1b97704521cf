package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// RollbackRecord is where it is written down which versions routers have rolled back
// in a file, when and why: beside it.
func RollbackRecord(path string) string { return path + ".rollbacks" }

// Edit replaces the content of a file by what change makes of it: in one step, so
// that nobody reads half of it, and with its permissions. A link stays one. Of several
// programs that edit it at a time one goes after the other, and a person who saves it
// meanwhile keeps what was saved: then it is an error. Nothing is written when change
// gives an error, which is passed on, or what there is.
func Edit(path string, change func(data []byte) ([]byte, error)) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	locked, err := lock(path)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	defer func() { _ = locked.Close() }() // which unlocks it
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	edited, err := change(data)
	if err != nil || bytes.Equal(edited, data) {
		return err
	}
	if err := replace(path, data, edited); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	return nil
}

// lock waits until nobody else edits the file, which may have been replaced by then.
func lock(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR, 0) // to be locked over NFS it must be writable
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		held, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if now, err := os.Stat(path); err == nil && os.SameFile(held, now) {
			return f, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

// replace puts edited in the place of what was read.
func replace(path string, read, edited []byte) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	fresh, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = fresh.Write(edited)
	if err = errors.Join(err, fresh.Chmod(info.Mode().Perm()), fresh.Sync(), fresh.Close()); err == nil {
		err = unchangedSince(path, read)
	}
	if err == nil {
		err = os.Rename(fresh.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(fresh.Name()))
	}
	return nil
}

// unchangedSince gives an error if somebody else has changed the file meanwhile.
func unchangedSince(path string, read []byte) error {
	now, err := os.ReadFile(path)
	if err == nil && !bytes.Equal(now, read) {
		err = fmt.Errorf("%s has just been changed by somebody else: look at it, and try again", path)
	}
	return err
}
