package local

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// display is what a person reads while a cluster comes up. It is safe for
// concurrent use.
type display struct {
	terminal bool

	mu        sync.Mutex
	out       io.Writer // guarded by mu
	transient bool      // guarded by mu: the last line will be overwritten
}

func newDisplay(out io.Writer) *display {
	d := &display{out: out}
	if f, ok := out.(*os.File); ok {
		if info, err := f.Stat(); err == nil {
			d.terminal = info.Mode()&os.ModeCharDevice != 0
		}
	}
	return d
}

// say writes a line.
func (d *display) say(format string, args ...any) { d.line(fmt.Sprintf(format, args...)) }

// warn writes a line that stands out.
func (d *display) warn(format string, args ...any) { d.line("! " + fmt.Sprintf(format, args...)) }

// step names what is going on now; done says how it ended and how long it took.
func (d *display) step(name string) (done func(format string, args ...any)) {
	d.progress("%s…", name)
	return d.timed(name)
}

// timed is a step that shows its own progress.
func (d *display) timed(name string) (done func(format string, args ...any)) {
	started := time.Now()
	return func(format string, args ...any) {
		d.say("✓ %-8s %s (%.1f s)", name, fmt.Sprintf(format, args...), time.Since(started).Seconds())
	}
}

// progress shows a line that the next one replaces; elsewhere than on a terminal
// it shows nothing.
func (d *display) progress(format string, args ...any) {
	if !d.terminal {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	text := []rune(fmt.Sprintf(format, args...))
	fmt.Fprintf(d.out, "\r\x1b[K  %s", string(text[:min(len(text), 100)]))
	d.transient = true
}

func (d *display) line(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clear()
	fmt.Fprintln(d.out, text)
}

// write writes part of a line.
func (d *display) write(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clear()
	fmt.Fprint(d.out, text)
}

func (d *display) clear() {
	if d.transient {
		fmt.Fprint(d.out, "\r\x1b[K")
		d.transient = false
	}
}

// showHow prints how to use the cluster.
func (c *cluster) showHow(apiKey string) {
	p := c.plan
	c.ui.say("\nThe cluster is up after %.1f s.\n", time.Since(c.started).Seconds())
	c.ui.say("  tenant endpoint  http://%s/v1", p.connect)
	for _, r := range p.regions {
		c.ui.say("  %-5s            Envoy https://%s   xDS admin http://%s", r.name, r.tenant, r.routers[0].admin)
	}
	for _, r := range p.regions {
		if address := p.accelerator.near[r.name]; address != "" {
			c.ui.say("  accelerator      near %-5s https://%s", r.name, address)
		}
	}
	c.ui.say("\nFor an OpenAI client, paste this, or run: source %s\n", p.envFile())
	for _, line := range p.env(apiKey)[:3] {
		c.ui.say("  %s", line)
	}
	if versions := p.options.Versions; len(versions) > 1 {
		c.ui.say("\nTo try version %[2]s with a part of the requests, and to see how it does, after the same source:\n\n"+
			"    mrgc canary set %[1]s %[2]s 5%%\n    mrgc canary status", p.options.ModelName, versions[1])
	}
	c.ui.say("\nDevelopment mode: enclaves are processes here, and attestation is signed by a root that this start made.")
	c.ui.say("Ctrl-C stops everything.")
}
