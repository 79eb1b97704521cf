// Package operator is what `mrgc status`, `mrgc models`, `mrgc explain` and `mrgc
// replay` show: it asks routers' admins over plain HTTP, which are on loopback (or at the end
// of a tunnel), puts together what they say, and prints it for people. It
// changes nothing anywhere.
package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	askTimeout   = 5 * time.Second
	maxPageBytes = 64 << 20
)

// EnvPrefix begins the environment variables that have routers' admins:
// MRGC_ADMIN_USE1, MRGC_ADMIN_USE1_1 and so on.
const EnvPrefix = "MRGC_ADMIN_"

// Admins are the routers to ask.
type Admins struct {
	urls   []string
	client *http.Client
}

// NewAdmins takes the URLs that are given, or else those of an environment as
// os.Environ has it.
func NewAdmins(given, environ []string) (*Admins, error) {
	if len(given) == 0 {
		for _, entry := range slices.Sorted(slices.Values(environ)) {
			if name, value, _ := strings.Cut(entry, "="); strings.HasPrefix(name, EnvPrefix) && value != "" {
				given = append(given, value)
			}
		}
	}
	if len(given) == 0 {
		return nil, errors.New("no router to ask: give --admin http://127.0.0.1:9003 (repeat), or `source .mrgc/env`, which `mrgc up` writes")
	}
	a := &Admins{client: &http.Client{Timeout: askTimeout}}
	for _, text := range given {
		u, err := url.Parse(text)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return nil, fmt.Errorf("admin %q: want http://host:port", text)
		}
		a.urls = append(a.urls, strings.TrimRight(text, "/"))
	}
	return a, nil
}

// page is a GET, whatever its status. The caller closes it.
func (a *Admins) page(ctx context.Context, admin, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, admin+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("router does not answer: %w", err)
	}
	return resp, nil
}

// get reads a page of JSON, whatever its status, which it gives.
func (a *Admins) get(ctx context.Context, admin, path string, into any) (status int, err error) {
	resp, err := a.page(ctx, admin, path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }() // it was only read
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		return 0, fmt.Errorf("%s%s: HTTP %d, and no JSON: is this a router's admin, of this version?", admin, path, resp.StatusCode)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxPageBytes)).Decode(into); err != nil {
		return 0, fmt.Errorf("%s%s: %w", admin, path, err)
	}
	return resp.StatusCode, nil
}
