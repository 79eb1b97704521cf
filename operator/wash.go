package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/mrgc/mrgc/internal/api"
)

// Wash has an instance washed in full, by way of the first router that knows it. It
// gives the wash's id, and does not wait for it.
func (a *Admins) Wash(ctx context.Context, instance string) (id string, err error) {
	var failed error
	for _, admin := range a.urls {
		id, err := a.wash(ctx, admin, instance)
		if err == nil {
			return id, nil
		}
		failed = errors.Join(failed, fmt.Errorf("%s: %w", admin, err))
	}
	return "", failed
}

func (a *Admins) wash(ctx context.Context, admin, instance string) (id string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, admin+"/instances/"+url.PathEscape(instance)+"/wash", strings.NewReader("{}"))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.client.Do(req)
	if err != nil {
		return "", fmt.Errorf("router does not answer: %w", err)
	}
	defer func() { _ = resp.Body.Close() }() // it was only read
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxPageBytes))
	if err != nil {
		return "", fmt.Errorf("router breaks off its answer: %w", err)
	}
	if resp.StatusCode != http.StatusAccepted {
		return "", api.ParseError(resp.StatusCode, body)
	}
	var ordered struct {
		Wash string `json:"wash"`
	}
	if err := json.Unmarshal(body, &ordered); err != nil || ordered.Wash == "" {
		return "", errors.New("router has ordered the wash, and does not say which one it is: it is of another version")
	}
	return ordered.Wash, nil
}
