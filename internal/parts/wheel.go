package parts

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
)

// recordEntry is a line of a wheel's RECORD (binary distribution format, "The
// .dist-info directory"): path, hash, size. RECORD's own line has neither.
type recordEntry struct {
	path string // local, slash separated
	hash string // SHA-256 in URL-safe base64 without padding
	size int64
}

func readRecord(path string) ([]recordEntry, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	r := csv.NewReader(file)
	r.FieldsPerRecord = 3
	var entries []recordEntry
	for {
		line, err := r.Read()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, fmt.Errorf("RECORD: %w", err)
		}
		if strings.HasSuffix(line[0], ".dist-info/RECORD") && line[1] == "" {
			continue
		}
		hash, isSHA256 := strings.CutPrefix(line[1], "sha256=")
		size, err := strconv.ParseInt(line[2], 10, 64)
		if !isSHA256 || err != nil || !filepath.IsLocal(line[0]) {
			return nil, fmt.Errorf("RECORD: line for %q is not path, SHA-256, size", line[0])
		}
		entries = append(entries, recordEntry{path: line[0], hash: hash, size: size})
	}
}

// verify compares a part's files with its RECORD. Files that RECORD does not
// list are not looked at.
func verify(ctx context.Context, home string, p pin) error {
	entries, err := readRecord(filepath.Join(home, p.distInfo(), "RECORD"))
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	found := false
	for _, entry := range entries {
		found = found || entry.path == mainFile(p.part)
		group.Go(func() error {
			if err := verifyFile(ctx, filepath.Join(home, filepath.FromSlash(entry.path)), entry); err != nil {
				return fmt.Errorf("%s: %w", entry.path, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("%s is not in it", mainFile(p.part))
	}
	return nil
}

func verifyFile(ctx context.Context, path string, want recordEntry) error {
	file, err := os.Open(path)
	if err != nil {
		return errors.New("cannot be read")
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if info.Size() != want.size { // saves reading a file that was cut short
		return fmt.Errorf("has %d bytes instead of %d", info.Size(), want.size)
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, contextReader{ctx, file}); err != nil {
		return err
	}
	if base64.RawURLEncoding.EncodeToString(hash.Sum(nil)) != want.hash {
		return errors.New("has another checksum")
	}
	return nil
}

// unpack writes a wheel's files into the folder dir, which it makes. It takes
// plain files with names inside the folder and refuses any other wheel.
func unpack(ctx context.Context, wheel, dir string) error {
	archive, err := zip.OpenReader(wheel)
	if err != nil {
		return err
	}
	defer func() { _ = archive.Close() }()
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, member := range archive.File {
		if strings.HasSuffix(member.Name, "/") {
			continue // folders are made for the files in them
		}
		if !filepath.IsLocal(member.Name) || strings.Contains(member.Name, `\`) || !member.Mode().IsRegular() {
			return fmt.Errorf("refused: %q is not a plain file inside the archive", member.Name)
		}
		if err := unpackFile(ctx, member, filepath.Join(dir, filepath.FromSlash(member.Name))); err != nil {
			return fmt.Errorf("%s: %w", member.Name, err)
		}
	}
	return nil
}

func unpackFile(ctx context.Context, member *zip.File, path string) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	content, err := member.Open()
	if err != nil {
		return err
	}
	defer func() { _ = content.Close() }()
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	_, err = io.Copy(file, contextReader{ctx, content})
	return err
}

// contextReader ends reading when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
