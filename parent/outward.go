package parent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/api"
)

// relay carries the enclave's connections to one place until ctx ends.
func (p *Parent) relay(ctx context.Context, to string, from net.Listener, dial func(context.Context) (net.Conn, error)) error {
	stop := context.AfterFunc(ctx, func() { _ = from.Close() })
	defer stop()
	var pipes sync.WaitGroup
	defer pipes.Wait()
	for {
		conn, err := from.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept the enclave's connections to %s: %w", to, err)
		}
		pipes.Go(func() { p.pipe(ctx, to, conn, dial) })
	}
}

// pipe copies bytes both ways until either side closes or ctx ends.
func (p *Parent) pipe(ctx context.Context, to string, fromEnclave net.Conn, dial func(context.Context) (net.Conn, error)) {
	defer fromEnclave.Close()
	other, err := dial(ctx)
	if err != nil {
		p.log.Warn("the enclave cannot be connected", "to", to, "error", err)
		return
	}
	defer other.Close()
	stop := context.AfterFunc(ctx, func() {
		_ = fromEnclave.Close()
		_ = other.Close()
	})
	defer stop()
	finished := make(chan struct{}, 2)
	for _, pair := range [2][2]net.Conn{{other, fromEnclave}, {fromEnclave, other}} {
		go func() {
			_, _ = io.Copy(pair[0], pair[1]) // either end may hang up at any time; TLS inside notices a cut
			finished <- struct{}{}
		}()
	}
	<-finished
	_ = fromEnclave.Close()
	_ = other.Close()
	<-finished
}

// handCredentials keeps the enclave supplied with the credentials that it asks
// KMS with, until ctx ends: after its start, and when there are new ones. That
// it fails is no fault of the instance's: most requests need no KMS.
func (p *Parent) handCredentials(ctx context.Context) {
	ticker := time.NewTicker(p.config.ProbeInterval)
	defer ticker.Stop()
	failed := ""
	for {
		present, _ := p.enclaves.now()
		err := p.handCredentialsOnce(ctx, present)
		if ctx.Err() != nil {
			return
		}
		if text := fmt.Sprint(err); err != nil && text != failed { // said once, not every second
			p.log.Warn("the enclave has no credentials for KMS", "error", err)
			failed = text
		} else if err == nil {
			failed = ""
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (p *Parent) handCredentialsOnce(ctx context.Context, to *held) error {
	credentials, err := p.config.Credentials(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	body, err := get(ctx, to.client, "http://enclave"+api.PathAWSCredentials, 1<<10)
	if err != nil {
		return err
	}
	var holds api.AWSCredentialsHeld
	if err := json.Unmarshal(body, &holds); err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	if holds.AccessKeyID == credentials.AccessKeyID {
		return nil
	}
	content, err := json.Marshal(credentials) //nolint:gosec // handing them over is what this is for
	if err != nil {
		return err
	}
	return to.put(ctx, api.PathAWSCredentials, "credentials", content)
}

// put hands an enclave something.
func (h *held) put(ctx context.Context, path, what string, content []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://enclave"+path, bytes.NewReader(content))
	if err != nil {
		return err
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		answer, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // it only explains
		return fmt.Errorf("the enclave refuses the %s: %w", what, api.ParseError(resp.StatusCode, answer))
	}
	return nil
}
