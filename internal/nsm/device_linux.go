package nsm

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctlRaw is NSM_IOCTL_RAW, _IOWR(0x0A, 0, struct nsm_raw) (Linux,
// include/uapi/linux/nsm.h); aws-nitro-enclaves-nsm-api's driver is the same.
const ioctlRaw = 0xc0200a00

// raw is struct nsm_raw: where the request lies and where the answer goes. The
// driver sets the answer's length.
type raw struct {
	request, response extent
}

// extent is struct nsm_iovec.
type extent struct {
	address uint64
	bytes   uint64
}

// deviceModule is the real module, as its driver shows it. It is opened for each
// request.
type deviceModule struct{ path string }

func (m deviceModule) Attest(ctx context.Context, req Request) ([]byte, error) {
	document, err := m.attest(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("nsm %s: %w", m.path, err)
	}
	return document, nil
}

func (m deviceModule) attest(ctx context.Context, req Request) ([]byte, error) {
	message, err := EncodeRequest(req)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil { // the driver bounds what comes now: half a second
		return nil, err
	}
	device, err := os.OpenFile(m.path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer device.Close()
	answer := make([]byte, MaxResponse)
	var pinned runtime.Pinner // the driver gets addresses as numbers, which the garbage collector does not see
	defer pinned.Unpin()
	pinned.Pin(&message[0])
	pinned.Pin(&answer[0])
	call := &raw{request: extentOf(message), response: extentOf(answer)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), ioctlRaw, uintptr(unsafe.Pointer(call))); errno != 0 { //nolint:gosec // an ioctl takes an address
		return nil, fmt.Errorf("ioctl: %w", errno)
	}
	if call.response.bytes > MaxResponse {
		return nil, fmt.Errorf("an answer of %d bytes, at most %d", call.response.bytes, MaxResponse)
	}
	return DecodeResponse(answer[:call.response.bytes])
}

func extentOf(b []byte) extent {
	return extent{address: uint64(uintptr(unsafe.Pointer(&b[0]))), bytes: uint64(len(b))} //nolint:gosec // pinned by the caller
}

func openDevice(path string) (Module, error) { return deviceModule{path: path}, nil }
