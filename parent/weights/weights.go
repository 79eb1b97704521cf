// Package weights checks that a model's files are those that they have to be.
//
//	check, err := weights.Open("/models/SHA256SUMS", 200<<20)
//	seen, err := check.Verify(ctx, false)
//
// What they have to be is said by a file of sha256sum's, "HASH  PATH" in each line;
// paths are relative to that file.
package weights

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Limits on what is read as sums.
const (
	maxSumsBytes = 1 << 20
	readBytes    = 1 << 20 // at once
)

// Checker checks one model's files. It is safe for concurrent use.
type Checker struct {
	sums           []sum
	bytesPerSecond int

	reading sync.Mutex // held while files are read: one check at a time

	mu     sync.Mutex
	passed map[string]identity // guarded by mu: files as they were when they passed
}

// sum is what a file has to be.
type sum struct {
	path string
	hash [sha256.Size]byte
}

// identity changes when a file's content does, unless the kernel is deceived: ctime
// is its own to set.
type identity struct {
	device, inode uint64
	size          int64
	mtime, ctime  unix.Timespec
}

// Open reads the sums. A check reads no more than bytesPerSecond, so that it takes
// neither the disk nor a core from requests; 0: as fast as it can.
func Open(path string, bytesPerSecond int) (*Checker, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("sums of the model's files: %w", err)
	}
	if info.Size() > maxSumsBytes {
		return nil, fmt.Errorf("sums of the model's files: %s has more than %d bytes", path, maxSumsBytes)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("sums of the model's files: %w", err)
	}
	sums, err := parse(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for i := range sums {
		if !filepath.IsAbs(sums[i].path) {
			sums[i].path = filepath.Join(filepath.Dir(path), sums[i].path)
		}
	}
	return &Checker{sums: sums, bytesPerSecond: bytesPerSecond, passed: map[string]identity{}}, nil
}

// Takes is how long a check takes at least, of files as large as they are now. One
// that is not there takes none.
func (c *Checker) Takes() time.Duration {
	var size int64
	for _, s := range c.sums {
		if info, err := os.Stat(s.path); err == nil {
			size += info.Size()
		}
	}
	return c.time(size)
}

// time is how long it takes to read so many bytes.
func (c *Checker) time(n int64) time.Duration {
	if c.bytesPerSecond == 0 {
		return 0
	}
	return time.Duration(float64(n) / float64(c.bytesPerSecond) * float64(time.Second))
}

// parse reads what sha256sum (GNU coreutils) writes, without its escapes: a path
// with a backslash or a line feed is refused.
func parse(content []byte) (sums []sum, err error) {
	seen := map[string]bool{}
	lines := bufio.NewScanner(bytes.NewReader(content))
	for n := 1; lines.Scan(); n++ {
		digest, path, ok := strings.Cut(lines.Text(), " ")
		hash, err := hex.DecodeString(digest)
		if !ok || err != nil || len(hash) != sha256.Size || len(path) < 2 || path[0] != ' ' && path[0] != '*' || strings.Contains(path, `\`) {
			return nil, fmt.Errorf("line %d: want a SHA-256 in hex, two spaces and a path, as sha256sum writes them", n)
		}
		path = path[1:]
		if seen[path] {
			return nil, fmt.Errorf("line %d: %s a second time", n, path)
		}
		seen[path] = true
		sums = append(sums, sum{path: path, hash: [sha256.Size]byte(hash)})
	}
	if len(sums) == 0 && lines.Err() == nil {
		return nil, errors.New("no file is in it")
	}
	return sums, lines.Err()
}

// Verify compares all files, and says what it has looked at. In a hurry it does not
// read again what has passed before and is, by the kernel's account, unchanged since.
func (c *Checker) Verify(ctx context.Context, hurry bool) (seen string, err error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	began := time.Now()
	var read, unchanged int64
	for _, s := range c.sums {
		n, err := c.verify(ctx, s, hurry)
		if err != nil {
			return "", err
		}
		if n == 0 {
			unchanged++
		}
		read += n
	}
	return fmt.Sprintf("%d files, %d of them unchanged since they were read; %d MiB read in %s",
		len(c.sums), unchanged, read>>20, time.Since(began).Round(time.Millisecond)), nil
}

// verify compares one file; it gives how many bytes it read.
func (c *Checker) verify(ctx context.Context, s sum, hurry bool) (read int64, err error) {
	f, err := os.Open(s.path)
	if err != nil {
		return 0, fmt.Errorf("model: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	before, err := identify(f)
	if err != nil {
		return 0, fmt.Errorf("model: %w", err)
	}
	if known, ok := c.hasPassed(s.path); hurry && ok && known == before {
		return 0, nil
	}
	c.forget(s.path)
	hash := sha256.New()
	if read, err = c.copy(ctx, hash, f); err != nil {
		return 0, fmt.Errorf("model: %s: %w", s.path, err)
	}
	if [sha256.Size]byte(hash.Sum(nil)) != s.hash {
		return 0, fmt.Errorf("model: %s is not the file that it has to be", s.path)
	}
	after, err := identify(f)
	if err != nil || after != before {
		return 0, fmt.Errorf("model: %s changes while it is read", s.path)
	}
	c.mu.Lock()
	c.passed[s.path] = before
	c.mu.Unlock()
	return read, nil
}

// Look says whether all files can be opened, and whether those that have passed are, by
// the kernel's account, unchanged since. It reads none. It hangs as long as the file
// system does, which nothing can help.
func (c *Checker) Look() error {
	for _, s := range c.sums {
		if err := c.look(s.path); err != nil {
			return err
		}
	}
	return nil
}

func (c *Checker) look(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it was not written
	known, passed := c.hasPassed(path)
	now, err := identify(f)
	if err != nil {
		return err
	}
	if passed && now != known {
		return fmt.Errorf("%s has changed since it was checked", path)
	}
	return nil
}

// hasPassed gives a file as it was when it passed.
func (c *Checker) hasPassed(path string) (identity, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, ok := c.passed[path]
	return known, ok
}

func (c *Checker) forget(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.passed, path)
}

func identify(f *os.File) (identity, error) {
	var s unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &s); err != nil {
		return identity{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return newIdentity(&s), nil
}

// copy reads no faster than it may.
func (c *Checker) copy(ctx context.Context, to io.Writer, from io.Reader) (n int64, err error) {
	buf := make([]byte, readBytes)
	began := time.Now()
	for {
		if err := ctx.Err(); err != nil {
			return n, context.Cause(ctx)
		}
		k, err := from.Read(buf)
		_, _ = to.Write(buf[:k]) // a hash takes all
		n += int64(k)
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(began.Add(c.time(n)))):
		}
	}
}
