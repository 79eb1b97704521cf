package autoscaler

import (
	"math"
	"slices"
	"time"
)

// Forecast is what is known of a region's demand over time, in requests/s. The zero
// value knows nothing, and foresees what is.
type Forecast struct {
	// Day is the mean of each five minutes of the day (UTC), of the days before, and
	// Days how many. The newest day counts for half.
	Day  []float64
	Days []float64
	// Recent are the last minutes' means, the oldest first.
	Recent []float64
	// The minute and the five minutes that are being filled.
	Minute, Bin mean
	// Promised is what was foreseen for the minutes to come, and Margin the part by which
	// it is raised.
	Promised []float64
	Margin   float64
	// Peak is the most that was needed since less is.
	Peak int
}

// mean gathers what falls into one interval.
type mean struct {
	Of  int64 // intervals since 1970
	Sum float64
	N   float64
}

// The constants of a forecast. They were chosen on other days of bench/autoscaling than
// those that are reported.
const (
	binsOfDay   = 24 * 12
	recentCount = 10  // minutes whose mean is the level of now
	blur        = 4   // bins on each side that a usual value is the mean of, as each alone fluctuates
	maxRise     = 3.0 // within a lead, as far as the days before are believed
	maxUnseen   = 5   // minutes, after which what was just before says nothing of now

	// goal is the share of requests that may be late: below 1 %, as there is more
	// than forecasts that makes them so. The margin rises by learning for each minute in
	// which all are late, and falls by as much for each 1/goal in which none is (adaptive
	// conformal inference: Gibbs and Candès, NeurIPS 2021), so that it finds by itself
	// what this region's fluctuation takes. What is late because something is broken is
	// not forgotten for a day or two; hence a bound.
	goal        = 0.007
	learning    = 0.015
	firstMargin = 0.3
	maxMargin   = 0.6
	// beyond is the share of minutes that may go beyond a forecast, where nobody says how
	// many requests are late.
	beyond = 0.1
)

func (f Forecast) clone() Forecast {
	f.Day, f.Days, f.Recent, f.Promised = slices.Clone(f.Day), slices.Clone(f.Days), slices.Clone(f.Recent), slices.Clone(f.Promised)
	return f
}

// note takes the present demand, and the share of requests that have been late for dt;
// below 0: not known.
func (f *Forecast) note(demand, late float64, dt time.Duration, now time.Time, lead time.Duration) {
	switch {
	case f.Minute.Of == 0:
		f.Margin = firstMargin
	case now.Unix()/60-f.Minute.Of > maxUnseen:
		f.Minute, f.Bin, f.Recent, f.Promised = mean{}, mean{}, nil, nil
	}
	if late >= 0 {
		f.raise(late-goal, dt)
	}
	if full, ok := f.Minute.add(now.Unix()/60, demand); ok {
		f.Recent = append(f.Recent, full)
		f.Recent = f.Recent[max(len(f.Recent)-recentCount, 0):]
		if len(f.Promised) > 0 {
			over := -beyond
			if full > f.Promised[0]*(1+f.Margin) {
				over++
			}
			if late < 0 {
				f.raise(over, time.Minute)
			}
			f.Promised = f.Promised[1:]
		}
		for len(f.Promised) < int(lead.Minutes()) {
			f.Promised = append(f.Promised, f.at(full, now, time.Duration(len(f.Promised)+1)*time.Minute))
		}
	}
	bin := f.Bin.Of
	if full, ok := f.Bin.add(now.Unix()/300, demand); ok {
		if f.Day == nil {
			f.Day, f.Days = make([]float64, binsOfDay), make([]float64, binsOfDay)
		}
		i := bin % binsOfDay
		f.Days[i]++
		f.Day[i] += (full - f.Day[i]) * max(1/f.Days[i], 0.5)
	}
}

// raise changes the margin by what was seen for a while.
func (f *Forecast) raise(by float64, dt time.Duration) {
	f.Margin = min(max(f.Margin+learning*by*min(dt.Minutes(), 1), 0), maxMargin)
}

// add gives an interval's mean when the next begins.
func (m *mean) add(of int64, v float64) (full float64, ok bool) {
	if of != m.Of {
		if m.N > 0 {
			full, ok = m.Sum/m.N, true
		}
		*m = mean{Of: of}
	}
	m.Sum, m.N = m.Sum+v, m.N+1
	return full, ok
}

// ahead is the most that is foreseen from now until the lead is over, with the margin.
func (f *Forecast) ahead(demand float64, now time.Time, lead time.Duration) float64 {
	most := f.level(demand)
	for t := time.Minute; t <= lead; t += time.Minute {
		most = max(most, f.at(demand, now, t))
	}
	return most * (1 + f.Margin)
}

// level is the demand of now, less its jitter: the mean of the last minutes.
func (f *Forecast) level(demand float64) float64 {
	if len(f.Recent) == 0 {
		return demand
	}
	sum := 0.0
	for _, v := range f.Recent {
		sum += v
	}
	return sum / float64(len(f.Recent))
}

// at foresees the demand at a time to come: the level, times how much the days before
// rose from the level's time to that, as far as they are known. A trend of the last
// minutes says nothing of the next where the load fluctuates, and is not followed.
func (f *Forecast) at(demand float64, now time.Time, after time.Duration) float64 {
	level, middle := f.level(demand), now
	if n := len(f.Recent); n > 0 {
		middle = now.Truncate(time.Minute).Add(-time.Duration(n) * time.Minute / 2)
	}
	if from, to := f.usual(middle), f.usual(now.Add(after)); from > 0 && to > 0 {
		return level * min(max(to/from, 1/maxRise), maxRise)
	}
	return level
}

// usual is the days' mean at a time of the day, between the middles of five minutes; 0:
// not known.
func (f *Forecast) usual(at time.Time) float64 {
	if f.Day == nil {
		return 0
	}
	position := float64(at.Unix())/300 - 0.5
	i := int64(math.Floor(position))
	for j := i - blur; j <= i+blur+1; j++ {
		if f.Days[j%binsOfDay] == 0 {
			return 0
		}
	}
	share := position - float64(i)
	sum := 0.0
	for j := i - blur; j <= i+blur; j++ {
		sum += f.Day[j%binsOfDay]*(1-share) + f.Day[(j+1)%binsOfDay]*share
	}
	return sum / (2*blur + 1)
}

// peak remembers the most that was needed since a moment.
func (f *Forecast) peak(n int, begins bool) {
	if begins {
		f.Peak = 0
	}
	f.Peak = max(f.Peak, n)
}
