package eif

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// File is a file of a ramdisk, owned by root.
type File struct {
	Path    string      // relative and clean: etc/mrgc/enclave.json; its folders are made
	Mode    fs.FileMode // permissions only
	Content []byte
}

// Modes of an inode (inode(7)).
const (
	modeDirectory = 0o040000
	modeRegular   = 0o100000
)

// ramdiskAlign is what a ramdisk is padded to, so that the next one, which the
// kernel finds right behind it, begins where its reader looks.
const ramdiskAlign = 512

// Ramdisk is an archive that Linux unpacks at its start: cpio in its "new" form,
// not compressed (kernel documentation, "initramfs buffer format"). The order of
// files does not matter, and the same files give the same bytes.
func Ramdisk(files ...File) ([]byte, error) {
	byPath := map[string]File{}
	for _, file := range files {
		if err := file.check(); err != nil {
			return nil, fmt.Errorf("ramdisk: %q: %w", file.Path, err)
		}
		if _, ok := byPath[file.Path]; ok {
			return nil, fmt.Errorf("ramdisk: %q is there twice", file.Path)
		}
		byPath[file.Path] = file
	}
	var paths []string
	folders := map[string]bool{}
	for name := range byPath {
		paths = append(paths, name)
		for dir := path.Dir(name); dir != "." && !folders[dir]; dir = path.Dir(dir) {
			if _, ok := byPath[dir]; ok {
				return nil, fmt.Errorf("ramdisk: %q is a file and a folder", dir)
			}
			folders[dir] = true
			paths = append(paths, dir)
		}
	}
	slices.Sort(paths) // a folder comes before what is in it
	var out bytes.Buffer
	for n, name := range paths {
		if folders[name] {
			writeEntry(&out, n+1, modeDirectory|0o755, 2, name, nil)
			continue
		}
		file := byPath[name]
		writeEntry(&out, n+1, modeRegular|uint32(file.Mode), 1, name, file.Content)
	}
	writeEntry(&out, 0, 0, 1, "TRAILER!!!", nil)
	pad(&out, ramdiskAlign)
	return out.Bytes(), nil
}

// maxFileBytes is where cpio's eight hex digits could be read as negative.
const maxFileBytes = 1<<31 - 1

func (f File) check() error {
	switch {
	case !fs.ValidPath(f.Path) || f.Path == ".":
		return errors.New("want a path that is relative and clean")
	case strings.ContainsFunc(f.Path, func(r rune) bool { return r <= ' ' || r > '~' }):
		return errors.New("want a path of printable ASCII")
	case f.Mode != f.Mode.Perm():
		return errors.New("want permissions and no other mode")
	case len(f.Content) > maxFileBytes:
		return errors.New("too large")
	}
	return nil
}

// writeEntry writes one inode, of root's, last changed at time 0.
func writeEntry(out *bytes.Buffer, inode int, mode uint32, links int, name string, content []byte) {
	out.WriteString("070701")
	for _, field := range []uint32{
		uint32(inode), mode, 0 /* user */, 0 /* group */, uint32(links), 0, /* time */
		uint32(len(content)), 0, 0, 0, 0 /* devices */, uint32(len(name) + 1), 0, /* checksum: not used */
	} {
		fmt.Fprintf(out, "%08X", field)
	}
	out.WriteString(name)
	out.WriteByte(0)
	pad(out, 4)
	out.Write(content)
	pad(out, 4)
}

func pad(out *bytes.Buffer, align int) {
	out.Write(make([]byte, (align-out.Len()%align)%align))
}
