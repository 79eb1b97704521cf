// Package door asks regions' front doors whether they take requests: through the port
// and the Envoy that tenants use, by a name of the controllers' own, with mutual TLS
// (package api, PathDoor). It is how a controller sees regions, its own included, as
// tenants would:
//
//	doors := door.New(identity, map[fleet.Region]string{"use1": "nlb-use1.example:443", …})
//	defer doors.Close()
//	err := doors.Ask(ctx, "use1")
package door

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
)

// Doors are the regions' front doors. It is safe for concurrent use.
type Doors struct {
	doors map[fleet.Region]*door
}

type door struct {
	url    string
	client *http.Client
}

// New takes the addresses, "host:port", by region.
func New(self *identity.Source, addresses map[fleet.Region]string) *Doors {
	d := &Doors{doors: map[fleet.Region]*door{}}
	for region, address := range addresses {
		envoy := identity.ID{Region: string(region), Role: identity.RoleEnvoy}
		config := self.ClientTLS(func(id identity.ID) bool { return id == envoy })
		config.ServerName = api.DoorName
		d.doors[region] = &door{
			url:    "https://" + address + api.PathDoor,
			client: &http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}},
		}
	}
	return d
}

// Ask asks a region's door, until ctx ends. An error says that it did not answer, that
// somebody else did, or that the region takes no requests.
func (d *Doors) Ask(ctx context.Context, region fleet.Region) error {
	at := d.doors[region]
	if at == nil {
		return fmt.Errorf("front door of %s: nobody has said where it is", region)
	}
	err := at.ask(ctx)
	if err != nil {
		at.client.CloseIdleConnections() // the next one is not to wait for what may hang
		return fmt.Errorf("front door of %s: %w", region, err)
	}
	return nil
}

func (d *door) ask(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url, nil)
	if err != nil {
		return err
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<10)); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("it says %s", resp.Status)
	}
	return nil
}

// Close gives the connections back.
func (d *Doors) Close() {
	for _, at := range d.doors {
		at.client.CloseIdleConnections()
	}
}
