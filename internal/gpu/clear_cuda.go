//go:build cgo && nvml

package gpu

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>
#include <stddef.h>

// The few functions of the CUDA driver API that are needed, loaded as they are:
// no CUDA toolkit is needed to build, and no driver to start.
typedef int result;
typedef int device;
typedef void *context;
typedef unsigned long long pointer;

static result (*f_init)(unsigned);
static result (*f_deviceCount)(int *);
static result (*f_deviceGet)(device *, int);
static result (*f_totalMem)(size_t *, device);
static result (*f_ctxCreate)(context *, unsigned, device);
static result (*f_ctxDestroy)(context);
static result (*f_memGetInfo)(size_t *, size_t *);
static result (*f_memAlloc)(pointer *, size_t);
static result (*f_memFree)(pointer);
static result (*f_memset)(pointer, unsigned, size_t);
static result (*f_toHost)(void *, pointer, size_t);
static result (*f_toDevice)(pointer, const void *, size_t);
static result (*f_hostAlloc)(void **, size_t, unsigned);
static result (*f_hostFree)(void *);
static result (*f_errorName)(result, const char **);

static int mrgc_load(void) {
	void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
	if (!lib) return -1;
#define LOAD(f, name) if (!(*(void **)&(f) = dlsym(lib, name))) return -2
	LOAD(f_init, "cuInit");
	LOAD(f_deviceCount, "cuDeviceGetCount");
	LOAD(f_deviceGet, "cuDeviceGet");
	LOAD(f_totalMem, "cuDeviceTotalMem_v2");
	LOAD(f_ctxCreate, "cuCtxCreate_v2");
	LOAD(f_ctxDestroy, "cuCtxDestroy_v2");
	LOAD(f_memGetInfo, "cuMemGetInfo_v2");
	LOAD(f_memAlloc, "cuMemAlloc_v2");
	LOAD(f_memFree, "cuMemFree_v2");
	LOAD(f_memset, "cuMemsetD32_v2");
	LOAD(f_toHost, "cuMemcpyDtoH_v2");
	LOAD(f_toDevice, "cuMemcpyHtoD_v2");
	LOAD(f_hostAlloc, "cuMemHostAlloc");
	LOAD(f_hostFree, "cuMemFreeHost");
	LOAD(f_errorName, "cuGetErrorName");
	return 0;
}

static result mrgc_init(void) { return f_init(0); }
static result mrgc_deviceCount(int *n) { return f_deviceCount(n); }
static result mrgc_deviceGet(device *d, int i) { return f_deviceGet(d, i); }
static result mrgc_totalMem(size_t *n, device d) { return f_totalMem(n, d); }
static result mrgc_ctxCreate(context *c, device d) { return f_ctxCreate(c, 0, d); }
static result mrgc_ctxDestroy(context c) { return f_ctxDestroy(c); }
static result mrgc_memGetInfo(size_t *f, size_t *t) { return f_memGetInfo(f, t); }
static result mrgc_memAlloc(pointer *p, size_t n) { return f_memAlloc(p, n); }
static result mrgc_memFree(pointer p) { return f_memFree(p); }
static result mrgc_zero(pointer p, size_t words) { return f_memset(p, 0, words); }
static result mrgc_toHost(void *h, pointer p, size_t n) { return f_toHost(h, p, n); }
static result mrgc_toDevice(pointer p, const void *h, size_t n) { return f_toDevice(p, h, n); }
static result mrgc_hostAlloc(void **h, size_t n) { return f_hostAlloc(h, n, 0); }
static result mrgc_hostFree(void *h) { return f_hostFree(h); }
static const char *mrgc_errorName(result r) { const char *s = 0; f_errorName(r, &s); return s ? s : "unknown error"; }
*/
import "C"

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"unsafe"
)

// Sizes of what is allocated, from the largest down to the smallest that is
// tried, and of what is copied at once.
const (
	largestBlock  = 1 << 30
	smallestBlock = 2 << 20 // the page size of GPU memory
	pieceBytes    = 64 << 20
)

// loadCUDA loads the driver's library once.
var loadCUDA = sync.OnceValue(func() error {
	switch C.mrgc_load() {
	case 0:
		return cudaError("start CUDA", C.mrgc_init())
	case -1:
		return fmt.Errorf("%w: there is no libcuda.so.1", ErrNone)
	default:
		return errors.New("libcuda.so.1 lacks a function of the driver API")
	}
})

// noDevice is what CUDA says where there is a driver and no GPU
// (CUDA_ERROR_NO_DEVICE).
const noDevice = 100

func cudaError(what string, r C.result) error {
	if r == 0 {
		return nil
	}
	if r == noDevice {
		return fmt.Errorf("%w: CUDA knows of none", ErrNone)
	}
	return fmt.Errorf("%s: %s (%d)", what, C.GoString(C.mrgc_errorName(r)), int(r))
}

// Clear takes all memory of a GPU that is free, searches it for the canary,
// overwrites it with zeros, reads it back, and gives it back. What has been
// planted by a process counts as free when that process has gone: stop the engine
// first. [ErrNone] says that there is no GPU to be seen.
//
// The driver gives processes memory that it has cleared, so a canary that is
// found has come past that; none found and full coverage is what a clean GPU
// looks like. On an H200 with driver 580, after a process that had filled all of
// it was killed: 139.3 of 139.8 GiB in 35 s, the canary nowhere, no byte but zero.
func Clear(index int, canary []byte) (Cleared, error) {
	if err := checkCanary(canary); err != nil {
		return Cleared{}, err
	}
	m, err := takeMemory(index, math.MaxUint64)
	if err != nil {
		return Cleared{}, err
	}
	cleared, err := m.clear(canary)
	return cleared, errors.Join(err, m.giveBack())
}

// CanClear says whether this program was built to clear GPUs; if it was not, the
// error is [ErrNone].
func CanClear() error { return nil }

// count is how many GPUs CUDA sees.
func count() (int, error) {
	if err := loadCUDA(); err != nil {
		return 0, err
	}
	var n C.int
	err := cudaError("count GPUs", C.mrgc_deviceCount(&n))
	return int(n), err
}

// free is how much of a GPU's memory is free, and how much there is.
func free(index int) (free, total uint64, err error) {
	if err := loadCUDA(); err != nil {
		return 0, 0, err
	}
	runtime.LockOSThread()
	m := &memory{}
	defer func() { err = errors.Join(err, m.giveBack()) }()
	if err := m.open(index); err != nil {
		return 0, 0, err
	}
	var f, t C.size_t
	err = cudaError("free memory", C.mrgc_memGetInfo(&f, &t))
	return uint64(f), uint64(t), err
}

// memory is all of a GPU's memory that was free. CUDA's contexts belong to
// threads: its owner stays on one.
type memory struct {
	total   uint64
	context C.context
	blocks  []block
	host    unsafe.Pointer // pinned, pieceBytes
}

type block struct {
	at   C.pointer
	size uint64
}

// takeMemory takes up to limit bytes, and locks the goroutine to its thread until
// giveBack.
func takeMemory(index int, limit uint64) (m *memory, err error) {
	if err := loadCUDA(); err != nil {
		return nil, err
	}
	runtime.LockOSThread()
	m = &memory{}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.giveBack())
			m = nil
		}
	}()
	if err := m.open(index); err != nil {
		return m, err
	}
	if err := cudaError("pinned memory", C.mrgc_hostAlloc(&m.host, pieceBytes)); err != nil {
		return m, err
	}
	for size := uint64(largestBlock); size >= smallestBlock; {
		var at C.pointer
		if size > limit || C.mrgc_memAlloc(&at, C.size_t(size)) != 0 { // no room for one of this size
			size /= 2
			continue
		}
		m.blocks = append(m.blocks, block{at: at, size: size})
		limit -= size
	}
	if len(m.blocks) == 0 {
		return m, errors.New("clear GPU memory: none is free")
	}
	return m, nil
}

// open makes a context on the GPU.
func (m *memory) open(index int) error {
	var d C.device
	if err := cudaError(fmt.Sprintf("GPU %d", index), C.mrgc_deviceGet(&d, C.int(index))); err != nil {
		return err
	}
	var total C.size_t
	if err := cudaError("size of the GPU's memory", C.mrgc_totalMem(&total, d)); err != nil {
		return err
	}
	m.total = uint64(total)
	return cudaError("context on the GPU", C.mrgc_ctxCreate(&m.context, d))
}

// giveBack frees all.
func (m *memory) giveBack() (err error) {
	defer runtime.UnlockOSThread()
	for _, b := range m.blocks {
		err = errors.Join(err, cudaError("free GPU memory", C.mrgc_memFree(b.at)))
	}
	if m.host != nil {
		err = errors.Join(err, cudaError("free pinned memory", C.mrgc_hostFree(m.host)))
	}
	if m.context != nil {
		err = errors.Join(err, cudaError("destroy context", C.mrgc_ctxDestroy(m.context)))
	}
	return err
}

// clear searches, overwrites and reads back.
func (m *memory) clear(canary []byte) (Cleared, error) {
	found, err := m.search(canary)
	if err != nil {
		return found, err
	}
	if err := m.overwrite(); err != nil {
		return found, err
	}
	return found, m.check(canary, &found)
}

func (m *memory) overwrite() error {
	for _, b := range m.blocks {
		if err := cudaError("overwrite GPU memory", C.mrgc_zero(b.at, C.size_t(b.size/4))); err != nil {
			return err
		}
	}
	return nil
}

// check wants zeros everywhere, and notes how much that is.
func (m *memory) check(canary []byte, cleared *Cleared) error {
	after, err := m.search(canary)
	if err != nil {
		return err
	}
	if after.DirtyBytes > 0 {
		return fmt.Errorf("clear GPU memory: %d bytes are not zero after they were overwritten, the canary is there %d times", after.DirtyBytes, after.CanaryHits)
	}
	for _, b := range m.blocks {
		cleared.ClearedBytes += b.size
	}
	return nil
}

// search reads all of it.
func (m *memory) search(canary []byte) (Cleared, error) {
	s := newSearcher(canary)
	s.found.TotalBytes = m.total
	piece := unsafe.Slice((*byte)(m.host), pieceBytes)
	for _, b := range m.blocks {
		s.begin()
		for at := uint64(0); at < b.size; {
			n := min(b.size-at, pieceBytes)
			if err := cudaError("read GPU memory", C.mrgc_toHost(m.host, b.at+C.pointer(at), C.size_t(n))); err != nil {
				return s.found, err
			}
			s.add(piece[:n])
			at += n
		}
	}
	return s.found, nil
}

// plantedEvery is how far apart planted canaries are.
const plantedEvery = 4096

// plant fills all of it, with a canary at the beginning of each 4096 bytes: for
// tests.
func (m *memory) plant(canary []byte) error {
	piece := unsafe.Slice((*byte)(m.host), pieceBytes)
	for at := range piece {
		piece[at] = 0x5a
	}
	for at := 0; at < len(piece); at += plantedEvery {
		copy(piece[at:], canary)
	}
	for _, b := range m.blocks {
		for at := uint64(0); at < b.size; {
			n := min(b.size-at, pieceBytes)
			if err := cudaError("write GPU memory", C.mrgc_toDevice(b.at+C.pointer(at), m.host, C.size_t(n))); err != nil {
				return err
			}
			at += n
		}
	}
	return nil
}
