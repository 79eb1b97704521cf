package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/mrgc/mrgc/internal/api"
)

// Wash has an instance washed in full, by way of the first router that knows it. It
// does not wait for the wash.
func (a *Admins) Wash(ctx context.Context, instance string) error {
	var failed error
	for _, admin := range a.urls {
		err := a.wash(ctx, admin, instance)
		if err == nil {
			return nil
		}
		failed = errors.Join(failed, fmt.Errorf("%s: %w", admin, err))
	}
	return failed
}

func (a *Admins) wash(ctx context.Context, admin, instance string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, admin+"/instances/"+url.PathEscape(instance)+"/wash", strings.NewReader("{}"))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.client.Do(req)
	if err != nil {
		return fmt.Errorf("router does not answer: %w", err)
	}
	defer func() { _ = resp.Body.Close() }() // it was only read
	if resp.StatusCode == http.StatusAccepted {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxPageBytes))
	if err != nil {
		return err
	}
	return api.ParseError(resp.StatusCode, body)
}
