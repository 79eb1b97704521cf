package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/mrgc/mrgc/internal/api"
)

// attestHost answers the enclave, which trusts the document and nothing that the
// guard says.
func (g *Guard) attestHost(w http.ResponseWriter, r *http.Request) {
	if g.cfg.AttestHost == nil {
		api.Errorf(http.StatusNotFound, "host_not_attested", "nothing vouches for this engine's host: run it on an attestable AMI, and its guard with --nitro-tpm-attest").Write(w)
		return
	}
	nonce, err := io.ReadAll(io.LimitReader(r.Body, api.HostNonceBytes+1))
	if err != nil || len(nonce) != api.HostNonceBytes {
		api.Errorf(http.StatusBadRequest, "invalid_nonce", "a nonce has %d bytes", api.HostNonceBytes).Write(w)
		return
	}
	g.host.Lock()
	defer g.host.Unlock()
	document, err := g.cfg.AttestHost(r.Context(), nonce)
	if err != nil {
		g.log.Error("the host's NitroTPM does not vouch", "error", err)
		api.Errorf(http.StatusServiceUnavailable, "host_attestation_failed", "the host's NitroTPM gave no document").Write(w)
		return
	}
	w.Header().Set("Content-Type", "application/cbor")
	_, _ = w.Write(document) // the enclave asks again
}

const (
	nitroTPMTimeout = 20 * time.Second // of a chip that takes a second at most
	maxDocument     = 12 << 10
	maxToldBytes    = 512 // of what the tool says of its failure
)

// NitroTPM has AWS's nitro-tpm-attest make a document with user data and a nonce.
// The command is its path, and arguments that come before its own.
func NitroTPM(ctx context.Context, command []string, userData, nonce []byte) (document []byte, err error) {
	if len(command) == 0 {
		return nil, errors.New("NitroTPM: no command")
	}
	dir, err := os.MkdirTemp("", "nitro-tpm-attest-")
	if err != nil {
		return nil, fmt.Errorf("NitroTPM: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	args := command[1:len(command):len(command)]
	for _, input := range []struct {
		flag    string
		content []byte
	}{{"user-data", userData}, {"nonce", nonce}} {
		path := filepath.Join(dir, input.flag)
		if err := os.WriteFile(path, input.content, 0o600); err != nil {
			return nil, fmt.Errorf("NitroTPM: %w", err)
		}
		args = append(args, "--"+input.flag, path)
	}
	ctx, cancel := context.WithTimeout(ctx, nitroTPMTimeout)
	defer cancel()
	var out, told bytes.Buffer
	run := exec.CommandContext(ctx, command[0], args...) //nolint:gosec // the operator's command
	run.Stdout, run.Stderr, run.WaitDelay = &out, &told, time.Second
	if err := run.Run(); err != nil {
		said := strings.TrimSpace(told.String())
		return nil, fmt.Errorf("NitroTPM: %s: %w: %q", command[0], err, said[:min(len(said), maxToldBytes)])
	}
	if out.Len() == 0 || out.Len() > maxDocument {
		return nil, fmt.Errorf("NitroTPM: %s gave %d bytes, not 1 to %d", command[0], out.Len(), maxDocument)
	}
	return out.Bytes(), nil
}
