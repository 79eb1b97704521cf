package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/mrgc/mrgc/bench/rig"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/routing"
)

// cluster is instances, a router, and an Envoy before them; and a second Envoy
// without the picker, if one is wanted.
type cluster struct {
	dir       string
	instances *part
	router    *part
	with      side
	without   side
	twin      *part // tells the second Envoy what to do
}

// side is an Envoy.
type side struct {
	config rig.RouterConfig
	envoy  *rig.Running
	admin  string
}

// part is a process of this program's.
type part struct {
	*exec.Cmd
	input io.WriteCloser
}

func startPart(ctx context.Context, name string, told, answer any) (*part, error) {
	cmd, input, err := rig.StartPart(ctx, name, told, answer)
	return &part{cmd, input}, err
}

func (p *part) stop() {
	if p != nil && p.Cmd != nil {
		_ = p.input.Close()
		_ = p.Wait()
	}
}

// withCluster runs a cluster for as long as use takes.
func withCluster(ctx context.Context, o options, instances int, p fleetPlan, twin bool, probe rig.Request, use func(*cluster) error) (err error) {
	dir, err := os.MkdirTemp("", "mrgc-picker-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c := &cluster{dir: dir}
	defer c.stop()
	if err := c.start(ctx, o, instances, p, twin, probe); err != nil {
		return err
	}
	return use(c)
}

func (c *cluster) start(ctx context.Context, o options, instances int, p fleetPlan, twin bool, probe rig.Request) (err error) {
	if p.Identities, err = rig.WriteIdentities(c.dir, instances); err != nil {
		return err
	}
	key, err := credential.New(rand.Reader, "bench")
	if err != nil {
		return err
	}
	var addresses []string
	if c.instances, err = startPart(ctx, "instances", p, &addresses); err != nil {
		return err
	}
	c.with.config = rig.NewRouterConfig(c.dir, addresses, p.Slots, routing.PolicyGateThenLoad, key)
	if err := c.startRouter(ctx); err != nil {
		return err
	}
	if err := c.with.start(ctx, o, "with", key, probe); err != nil {
		return err
	}
	if err := c.picks(ctx, probe); err != nil || !twin {
		return err
	}
	c.without.config = rig.NewRouterConfig(c.dir, addresses, p.Slots, routing.PolicyGateThenLoad, key)
	if c.twin, err = startPart(ctx, "no picker", c.without.config, &struct{}{}); err != nil {
		return err
	}
	return c.without.start(ctx, o, "without", key, probe)
}

func (c *cluster) startRouter(ctx context.Context) (err error) {
	c.router, err = startPart(ctx, "router", c.with.config, &struct{}{})
	return err
}

func (s *side) start(ctx context.Context, o options, name string, key credential.Key, probe rig.Request) error {
	f, err := rig.SealedFront(s.config, key)
	if err != nil {
		return err
	}
	s.admin = "127.0.0.1:" + rig.FreePort()
	cmd, err := rig.EnvoyCommand(o.tools, s.config, name, s.admin)
	if err != nil {
		return err
	}
	s.envoy, err = rig.Launch(ctx, s.config.Dir, f, probe, cmd)
	return err
}

func (c *cluster) stop() {
	for _, s := range []*side{&c.with, &c.without} {
		if s.envoy != nil {
			s.envoy.Stop()
		}
	}
	c.twin.stop()
	c.router.stop()
	c.instances.stop()
}

// picks waits until requests are picked again.
func (c *cluster) picks(ctx context.Context, probe rig.Request) error {
	for began := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		before, err := c.metrics()
		if err != nil {
			return err
		}
		if _, err := c.with.envoy.Front.Ask(ctx, probe); err != nil {
			return err
		}
		after, err := c.metrics()
		if err != nil {
			return err
		}
		if after.sum("mrgc_picks_total") > before.sum("mrgc_picks_total") {
			return nil
		}
		if time.Since(began) > 30*time.Second {
			return errors.New("the picker is not asked")
		}
	}
}

// metrics are the router's.
func (c *cluster) metrics() (metrics, error) {
	return fetch("http://" + c.with.config.Admin + "/metrics")
}

// rebuilds is how often this Envoy has rebuilt the load balancer of the model's
// cluster for its endpoints' sake.
func (s *side) rebuilds() (float64, error) {
	stats, err := fetch("http://" + s.admin + "/stats/prometheus?filter=update_success%7Cupdate_no_rebuild")
	if err != nil {
		return 0, err
	}
	of := fmt.Sprintf(`{envoy_cluster_name="%s@%s"}`, rig.Model, rig.Region)
	updates := stats.sum("envoy_cluster_update_success" + of)
	if updates == 0 {
		return 0, errors.New("envoy counts no update of the model's cluster")
	}
	return updates - stats.sum("envoy_cluster_update_no_rebuild"+of), nil
}
