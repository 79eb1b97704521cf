package softnsm

import (
	"crypto/sha512"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/mrgc/mrgc/internal/attest"
)

// What stands for the parts of an image that a process has not. PCR1 and PCR2
// are the same for every process; zero would mean debug mode.
const (
	noKernel = "mrgc software nsm: no kernel"                 // PCR1
	noAppFS  = "mrgc software nsm: no application filesystem" // PCR2
)

// Measure returns the PCRs of a process that executes the file at path, for a
// release's policy: PCR0 from its contents, and the fixed PCR1 and PCR2.
func Measure(path string) (attest.PCRs, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("measure: %w", err)
	}
	defer f.Close()
	sum, err := hashFile(f)
	if err != nil {
		return nil, fmt.Errorf("measure %s: %w", path, err)
	}
	return imagePCRs(sum), nil
}

// imagePCRs extends zero registers with SHA-384 hashes, the rule of enclave
// images.
func imagePCRs(executable digest) attest.PCRs {
	kernel, appFS := sha512.Sum384([]byte(noKernel)), sha512.Sum384([]byte(noAppFS))
	return attest.PCRs{
		0: attest.ExtendedPCR(executable[:]),
		1: attest.ExtendedPCR(kernel[:]),
		2: attest.ExtendedPCR(appFS[:]),
	}
}

type digest = [sha512.Size384]byte

func hashFile(r io.Reader) (sum digest, err error) {
	h := sha512.New384()
	if _, err := io.Copy(h, r); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}

// maxCached bounds the cache; a development machine runs one binary at a time,
// and rebuilds it.
const maxCached = 64

// measurer measures peers. The zero value is ready.
type measurer struct {
	mu    sync.Mutex // held while a file is hashed, so that it is hashed once
	cache map[fileID]digest
}

// fileID changes when a file's contents do, as far as the file system tells.
type fileID struct {
	device, inode uint64
	size          int64
	modified      int64 // ns since 1970
}
