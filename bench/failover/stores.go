package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/mrgc/mrgc/bench/cluster"
)

const (
	// late is a replication lag above the limit that alarms, 5 s.
	late = 8 * time.Second
	// storeDown is longer than a lease, so that nobody leads.
	storeDown = 15 * time.Second
)

// storeFaults are those of DynamoDB, by region and of all.
func storeFaults(ctx context.Context, c *cluster.Cluster, env map[string]string) []fault {
	return []fault{
		{
			name:     "a region's DynamoDB Local killed (SIGKILL), kept down for 15 s, back with its data",
			harmless: true, lasts: storeDown,
			begin: func() (func() error, error) {
				children, err := c.Children()
				if err != nil {
					return nil, err
				}
				return keepKilling(ctx, 1, func() (int, error) { return killBelow(children["globaltables-"+victim]) })
			},
		},
		{
			name:     "the store gone: all four DynamoDB Locals and what is in front killed, kept down for 15 s, back with their data",
			harmless: true, lasts: storeDown,
			begin: func() (func() error, error) {
				return keepKilling(ctx, 4, func() (int, error) {
					return kill(c, func(name string) bool { return strings.HasPrefix(name, "globaltables") })
				})
			},
		},
		{
			name:     "replication from a region 8 s late",
			harmless: true, lasts: 30 * time.Second,
			begin: func() (func() error, error) {
				url := env["MRGC_DYNAMODB_"+strings.ToUpper(victim)]
				return func() error { return setLag(ctx, url, 0) }, setLag(ctx, url, late)
			},
			also: func(ctx context.Context) (string, error) { return alarmed(ctx, env) },
		},
	}
}

func setLag(ctx context.Context, endpoint string, lag time.Duration) error {
	body := fmt.Appendf(nil, `{"lag_ms": %d}`, lag.Milliseconds())
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, endpoint+"/faults", bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("lag of %s: status %d", endpoint, resp.StatusCode)
	}
	return nil
}

// alarmed waits until another region's controller alarms for the victim's lag, and says
// what it measured.
func alarmed(ctx context.Context, env map[string]string) (string, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	const other = "use2"
	labels := fmt.Sprintf("{from=%q,region=%q}", victim, other)
	for {
		page, err := get(ctx, env["MRGC_CONTROLLER_"+strings.ToUpper(other)]+"/metrics")
		if err != nil {
			return "", fmt.Errorf("no alarm for replication lag: %w", err)
		}
		if strings.Contains(page, "mrgc_replication_lag_alarm"+labels+" 1\n") {
			_, measured, _ := strings.Cut(page, "mrgc_replication_lag_seconds"+labels+" ")
			measured, _, _ = strings.Cut(measured, "\n")
			return fmt.Sprintf("%s alarms after %.1f s, having measured %.4s s", other, seconds(time.Since(began)), measured), nil
		}
		if err := wait(ctx, 200*time.Millisecond); err != nil {
			return "", fmt.Errorf("no alarm for replication lag: %w", err)
		}
	}
}

func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	return string(page), err
}

// networkFaults cut regions off from each other, while tenants reach all of them.
func networkFaults(n *cluster.Network) []fault {
	cutting := func(pairs ...[2]string) func() (func() error, error) {
		each := func(do func(a, b string) error) error {
			for _, pair := range pairs {
				if err := do(pair[0], pair[1]); err != nil {
					return err
				}
			}
			return nil
		}
		return func() (func() error, error) { return func() error { return each(n.Heal) }, each(n.Cut) }
	}
	a, b, c := regions[0], regions[1], regions[2]
	const lasts = 20 * time.Second
	return []fault{
		{name: "the network cut between two regions for 20 s", harmless: true, lasts: lasts, begin: cutting([2]string{a, b})},
		{name: "the network cut between all regions for 20 s: no majority", harmless: true, lasts: lasts, begin: cutting([2]string{a, b}, [2]string{a, c}, [2]string{b, c})},
		{name: "a region cut off from the two others for 20 s", harmless: true, lasts: lasts, drained: "use2", begin: cutting([2]string{a, b}, [2]string{b, c})},
	}
}
