package parent

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/engineload"
	"github.com/mrgc/mrgc/internal/gpu"
	"github.com/mrgc/mrgc/internal/loadreport"
)

// reading is what engine and GPUs said when they were last asked.
type reading struct {
	engine *engineload.Metrics // nil: it has no metrics, or does not answer
	gpu    loadreport.GPU      // zero: none is seen
}

// gauges holds the last reading.
type gauges struct {
	asking sync.Mutex // held while GPUs are read: one at a time

	mu       sync.Mutex
	last     reading // guarded by mu
	gpuFault string  // guarded by mu: why GPUs could not be read; empty: they could
	gpuLost  bool    // guarded by mu: because one is gone
}

func (g *gauges) get() reading {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last
}

func (g *gauges) set(now reading) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last = now
}

// fault is why the GPUs could not be read, if they could not, and whether that is
// because one is gone.
func (g *gauges) fault() (why string, lost bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.gpuFault, g.gpuLost
}

// measure asks engine and GPUs.
func (p *Parent) measure(ctx context.Context) reading {
	now := reading{gpu: p.readGPU()}
	if body, err := get(ctx, p.guard, "https://guard/metrics", maxMetricsBytes); err == nil {
		if metrics, err := engineload.Read(bytes.NewReader(body)); err == nil {
			now.engine = &metrics
		}
	}
	p.gauges.set(now)
	return now
}

// readGPU reads the GPUs. One that cannot be read is like none in load reports, and
// logged once for each reason.
func (p *Parent) readGPU() loadreport.GPU {
	if p.config.ReadGPU == nil {
		return loadreport.GPU{}
	}
	p.gauges.asking.Lock()
	reading, err := p.config.ReadGPU()
	p.gauges.asking.Unlock()
	if err == nil {
		err = reading.Validate()
	}
	fault := ""
	if err != nil {
		reading, fault = loadreport.GPU{}, err.Error()
	}
	p.gauges.mu.Lock()
	changed := fault != p.gauges.gpuFault
	p.gauges.gpuFault, p.gauges.gpuLost = fault, errors.Is(err, gpu.ErrLost)
	p.gauges.mu.Unlock()
	if changed && err != nil {
		p.log.Warn("GPUs cannot be read; load reports go without them", "error", err)
	}
	return reading
}

const (
	// measureTimeout bounds what an engine that hangs takes from reports.
	measureTimeout = 500 * time.Millisecond
	// measureShare bounds what being asked costs an engine: no more than one
	// part in so many of its time, if it does nothing else meanwhile.
	measureShare = 10
)

// makeReports makes load reports until ctx ends: at each interval, and at once
// when a request comes after there was none. Engine and GPUs are asked for each
// while there is work; while there is none, what the instance's probes find is
// recent enough, because all work comes through this parent.
func (p *Parent) makeReports(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var (
		ended, failed rate
		askAgain      time.Time
	)
	publish := func() (busy bool) {
		now, own := time.Now(), p.load.read()
		report := p.newReport(own, p.gauges.get())
		report.RequestsPerSecond = ended.observe(own.ended, now)
		report.ErrorsPerSecond = failed.observe(own.failed, now)
		p.reports.publish(report)
		return report.Busy()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.load.woken:
		case <-timer.C:
		}
		interval := p.config.IdleReportInterval
		if publish() {
			interval = p.config.BusyReportInterval
			if began := time.Now(); !began.Before(askAgain) {
				asking, cancel := context.WithTimeout(ctx, measureTimeout)
				p.measure(asking)
				cancel()
				askAgain = began.Add(measureShare * time.Since(began))
				publish()
			}
		}
		timer.Reset(interval)
	}
}

// newReport puts together what this parent counts and what engine and GPUs said.
// What the parent has under way and the engine has not seen yet runs, too: it
// is with the enclave, or younger than the engine's figures.
func (p *Parent) newReport(own counts, said reading) loadreport.Report {
	r := loadreport.Report{
		Running: own.running, Slots: p.config.EngineSlots, TokensInFlight: own.tokens,
		UnreadTokens: own.unread, ReadTokensPerSecond: own.readPerSecond, RequestDuration: own.duration,
		GPU: said.gpu, Models: p.reports.models,
	}
	if said.engine != nil {
		r.Queued, r.KVCacheUse = said.engine.Queued, said.engine.KVCacheUse
		r.Running = max(said.engine.Running, own.running-said.engine.Queued)
	}
	return r
}
