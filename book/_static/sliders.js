// Figures with sliders (dropoutlib.interactive): Vega is fetched when a reader comes near the first one of a page, and
// the moving figure takes the place of the picture.
(() => {
  const here = document.currentScript.src;
  let vega = null;
  const library = () => vega ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = new URL("vega.js", here).href;
    script.onload = resolve;
    script.onerror = () => reject(new Error("vega.js could not be loaded"));
    document.head.append(script);
  });

  const start = async (figure) => {
    const spec = JSON.parse(figure.querySelector(".moving-data").textContent);
    const picture = figure.querySelector(".moving-picture"), sliders = figure.querySelector(".moving-sliders");
    await library();
    const options = {bind: sliders, defaultStyle: false, hover: false, tooltip: false};
    const {view} = await vegaEmbed(picture, {...spec, width: picture.clientWidth}, options);
    new ResizeObserver(() => { if (picture.clientWidth) view.width(picture.clientWidth).runAsync(); }).observe(picture);
    figure.querySelectorAll(".moving-readings data").forEach((reading, index) => {
      const show = (name, value) => {
        reading.value = String(value);
        reading.textContent = String(Number(value.toPrecision(4)));
      };
      show("", view.signal(`reading_${index}`));
      view.addSignalListener(`reading_${index}`, show);
    });
    figure.view = view;
    figure.dataset.moving = "";
  };

  const near = new IntersectionObserver((entries) => {
    for (const {isIntersecting, target} of entries)
      if (isIntersecting) {
        near.unobserve(target);
        start(target).catch((error) => console.error(error));
      }
  }, {rootMargin: "600px"});
  for (const picture of document.querySelectorAll(".moving-picture")) near.observe(picture.closest(".moving-figure"));
})();
