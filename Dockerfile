# lw_jax on a CPU:  docker build -t lw_jax . && docker run --rm -v "$PWD/runs:/home/wire/runs" lw_jax train configs/quickstart.yaml
FROM python:3.12-slim
WORKDIR /app
COPY requirements.txt pyproject.toml setup.py README.md LICENSE ./
RUN pip install --no-cache-dir --requirement requirements.txt
COPY lw_jax lw_jax
COPY configs configs
COPY zoo zoo
RUN pip install --no-cache-dir --no-deps .
ENV JAX_PLATFORMS=cpu JAX_COMPILATION_CACHE_DIR=/cache
RUN useradd --create-home wire && mkdir -p /cache && chown wire /cache
USER wire
WORKDIR /home/wire
ENTRYPOINT ["lw-jax"]
CMD ["--help"]
